//! What an agent knows against backends and tiers, kept for the one after it. Pure: text and time come in, no file is
//! touched.
//!
//! The agent counts in ticks, which mean nothing to anybody else, so what is written are moments as time that has passed since the
//! machine was started, suspended or not, which nobody puts forward or back; the file is kept where it does not outlive that.
//! What is read are ages; what is said to have begun later than now, as of another run of the machine, has just begun. A text
//! that is damaged or of another format is refused. Who reads begins afresh then, as if there were none.

use std::{net::SocketAddr, time::Duration};

use lb_common::tables::Tick;
use serde::{Deserialize, Serialize};

use crate::{health::reply::Asked, model::ServiceId, plan::duration};

/// Changes with the format.
const FORMAT: u32 = 2;

/// Why a text is no history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It cannot be read.
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Another version of the agent wrote it.
    #[error("it is of format {0}, and this agent reads {FORMAT}")]
    Format(u32),
}

/// What is kept, with times as `T`. Services are the first ones of their groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History<T> {
    /// Of backends that have failed of late.
    pub flaps: Vec<FlapsOf<T>>,
    /// Of backends that were kept out for what packets show.
    pub ejections: Vec<EjectionsOf<T>>,
    /// Of tiers that could not carry their flows and have not got them back.
    pub tiers: Vec<TierOf<T>>,
    /// Of backends that somebody has forced down.
    pub forced: Vec<ForcedOf<T>>,
    /// Of backends that fail their checks.
    #[serde(default = "Vec::new")]
    pub down: Vec<DownOf<T>>,
    /// Of backends whose agents ask for something.
    #[serde(default)]
    pub asked: Vec<AskedOf>,
    /// Of backends that have another share of their weight than all, by how they fare.
    #[serde(default)]
    pub shares: Vec<ShareOf>,
    /// Of backends whose weight begins to grow once their tier gets new flows.
    #[serde(default)]
    pub waiting: Vec<WaitingOf>,
}

/// The failures of a backend that are not forgotten ([`super::damping`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlapsOf<T> {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
    /// How many.
    pub failures: u32,
    /// Since when it is well, or forgotten the last one for.
    pub well_since: T,
    /// Since when its checks pass, where it is kept out.
    pub held_since: Option<T>,
    /// Whether it fails its checks.
    pub failing: bool,
}

/// The ejections of a backend that are not forgotten ([`super::outlier`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EjectionsOf<T> {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
    /// How many.
    pub times: u32,
    /// Since when it is well, or forgotten the last one for.
    pub well_since: T,
    /// Since when it is kept out, where it is.
    pub ejected_since: Option<T>,
    /// Why it was, the last time.
    pub why: String,
}

/// A tier that waits for its failback ([`super::tiers`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierOf<T> {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub tier: u8,
    /// The share of new flows that it has at most, of [`super::tiers::WHOLE`].
    pub most: u16,
    /// Since when it could carry more.
    pub better_since: Option<T>,
    /// Its backends that fail their checks: the others take no new flows for their tier's sake alone.
    pub failing: Vec<SocketAddr>,
}

/// A backend that somebody has forced down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForcedOf<T> {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
    /// Since when.
    pub since: T,
    /// Whether it has been for so long that it counts as dead.
    pub dead: bool,
}

/// A backend that fails its checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownOf<T> {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
    /// Since when.
    pub since: T,
    /// Whether nobody is there: its own port refuses, or its host does not answer.
    pub gone: bool,
    /// Whether it is new, and has not failed: one check that passes is enough.
    #[serde(default)]
    pub new: bool,
}

/// What a backend's agent asks for ([`crate::health::reply`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedOf {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
    /// What.
    pub asked: Asked,
}

/// The share of its weight that a backend has by how it fares ([`super::adaptive`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareOf {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
    /// In percent.
    pub percent: u16,
}

/// A backend that has come back to a tier without new flows ([`super::ramp`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitingOf {
    /// Of which service.
    pub service: ServiceId,
    /// Which.
    pub backend: SocketAddr,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self {
            flaps: Vec::new(),
            ejections: Vec::new(),
            tiers: Vec::new(),
            forced: Vec::new(),
            down: Vec::new(),
            asked: Vec::new(),
            shares: Vec::new(),
            waiting: Vec::new(),
        }
    }
}

impl<T> History<T> {
    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        let Self {
            flaps,
            ejections,
            tiers,
            forced,
            down,
            asked,
            shares,
            waiting,
        } = self;
        let by_agent = flaps.is_empty() && ejections.is_empty() && tiers.is_empty();
        let by_weight = shares.is_empty() && waiting.is_empty();
        by_agent && by_weight && forced.is_empty() && down.is_empty() && asked.is_empty()
    }

    /// The same with other times.
    ///
    /// # Errors
    /// The first of `to`.
    pub fn try_map<U, E>(self, to: impl Fn(T) -> Result<U, E>) -> Result<History<U>, E> {
        let flaps = self.flaps.into_iter().map(|of| {
            Ok(FlapsOf {
                service: of.service,
                backend: of.backend,
                failures: of.failures,
                well_since: to(of.well_since)?,
                held_since: of.held_since.map(&to).transpose()?,
                failing: of.failing,
            })
        });
        let ejections = self.ejections.into_iter().map(|of| {
            Ok(EjectionsOf {
                service: of.service,
                backend: of.backend,
                times: of.times,
                well_since: to(of.well_since)?,
                ejected_since: of.ejected_since.map(&to).transpose()?,
                why: of.why,
            })
        });
        let tiers = self.tiers.into_iter().map(|of| {
            Ok(TierOf {
                service: of.service,
                tier: of.tier,
                most: of.most,
                better_since: of.better_since.map(&to).transpose()?,
                failing: of.failing,
            })
        });
        let forced = self.forced.into_iter().map(|of| {
            Ok(ForcedOf {
                service: of.service,
                backend: of.backend,
                since: to(of.since)?,
                dead: of.dead,
            })
        });
        let down = self.down.into_iter().map(|of| {
            Ok(DownOf {
                service: of.service,
                backend: of.backend,
                since: to(of.since)?,
                gone: of.gone,
                new: of.new,
            })
        });
        Ok(History {
            flaps: flaps.collect::<Result<_, E>>()?,
            ejections: ejections.collect::<Result<_, E>>()?,
            tiers: tiers.collect::<Result<_, E>>()?,
            forced: forced.collect::<Result<_, E>>()?,
            down: down.collect::<Result<_, E>>()?,
            asked: self.asked,
            shares: self.shares,
            waiting: self.waiting,
        })
    }
}

/// A history as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    /// With times in milliseconds since the machine was started.
    history: History<u64>,
}

/// What tells the format, whatever else there is.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// `history` of an agent that counts `ticks` so long after the machine was started, as it is to be written.
///
/// # Errors
/// It cannot be.
pub fn write(history: History<Tick>, ticks: Tick, now: Duration) -> serde_json::Result<Vec<u8>> {
    let since = |tick: Tick| -> Result<u64, std::convert::Infallible> {
        Ok(millis(now.saturating_sub(duration(age(tick, ticks)))))
    };
    let Ok(history) = history.try_map(since);
    serde_json::to_vec(&Written {
        format: FORMAT,
        history,
    })
}

/// What was written, with times as they have passed until `now`, so long after the machine was started.
///
/// # Errors
/// See [`HistoryError`].
pub fn read(text: &[u8], now: Duration) -> Result<History<Duration>, HistoryError> {
    let Header { format } = serde_json::from_slice(text)?;
    if format != FORMAT {
        return Err(HistoryError::Format(format));
    }
    let Written { history, .. } = serde_json::from_slice(text)?;
    let age = |since: u64| -> Result<Duration, std::convert::Infallible> {
        Ok(now.saturating_sub(Duration::from_millis(since)))
    };
    let Ok(history) = history.try_map(age);
    Ok(history)
}

/// How long ago a tick was; one that another processor was ahead by is now.
fn age(tick: Tick, now: Tick) -> Tick {
    let age = now.wrapping_sub(tick);
    if age > i32::MAX as Tick { 0 } else { age }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{health::reply::Wants, plan::ticks};

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn service() -> ServiceId {
        "10.0.0.1:80/tcp".parse().unwrap()
    }

    fn backend(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, n], 80))
    }

    /// One of each kind, that began at this time.
    fn history<T: Copy>(since: T) -> History<T> {
        History {
            flaps: vec![FlapsOf {
                service: service(),
                backend: backend(1),
                failures: 3,
                well_since: since,
                held_since: Some(since),
                failing: true,
            }],
            ejections: vec![EjectionsOf {
                service: service(),
                backend: backend(2),
                times: 2,
                well_since: since,
                ejected_since: Some(since),
                why: "a connection was refused".to_owned(),
            }],
            tiers: vec![TierOf {
                service: service(),
                tier: 0,
                most: 500,
                better_since: Some(since),
                failing: vec![backend(3)],
            }],
            forced: vec![ForcedOf {
                service: service(),
                backend: backend(4),
                since,
                dead: true,
            }],
            down: vec![DownOf {
                service: service(),
                backend: backend(5),
                since,
                gone: true,
                new: true,
            }],
            asked: vec![AskedOf {
                service: service(),
                backend: backend(6),
                asked: Asked {
                    weight: Some(50),
                    wants: Some(Wants::Drain),
                    max_connections: Some(3),
                    says_down: true,
                },
            }],
            shares: vec![ShareOf {
                service: service(),
                backend: backend(7),
                percent: 40,
            }],
            waiting: vec![WaitingOf {
                service: service(),
                backend: backend(8),
            }],
        }
    }

    /// More than a month.
    const WRITTEN: u64 = 3_000_000_000;

    fn written() -> Vec<u8> {
        write(history(100), 100, at(WRITTEN)).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_the_time_until_then_has_passed() {
        let read = read(&written(), at(WRITTEN + 5_000)).unwrap();
        assert_eq!(read, history(Duration::from_secs(5)));
        let nothing = write(History::default(), 7, at(WRITTEN)).unwrap();
        assert!(super::read(&nothing, at(WRITTEN)).unwrap().is_empty());
    }

    #[test]
    fn what_is_said_to_begin_later_than_now_has_just_begun_and_the_rest_is_kept() {
        for now in [WRITTEN - 1_500, 0] {
            let read = read(&written(), at(now)).unwrap();
            assert_eq!(read, history(Duration::ZERO));
        }
        let text = String::from_utf8(written()).unwrap();
        let ahead = text.replace(
            &format!("\"since\":{WRITTEN}"),
            &format!("\"since\":{}", WRITTEN + 60_000),
        );
        assert_ne!(text, ahead);
        let read = read(ahead.as_bytes(), at(WRITTEN + 10_000)).unwrap();
        assert_eq!(read.forced[0].since, Duration::ZERO);
        assert_eq!(read.flaps[0].well_since, Duration::from_secs(10));
        assert_eq!(read.asked, history(Duration::ZERO).asked);
    }

    #[test]
    fn another_format_is_told_whatever_is_in_it() {
        for text in [r#"{"format":3,"more":[]}"#, r#"{"format":1}"#] {
            let error = read(text.as_bytes(), at(WRITTEN)).unwrap_err();
            assert!(matches!(error, HistoryError::Format(1 | 3)), "{error}");
        }
    }

    #[test]
    fn what_is_damaged_or_no_history_is_refused() {
        let whole = written();
        let mut more = whole.clone();
        more.extend(b"}");
        let cut = &whole[..whole.len() - 9];
        for text in [b"".as_slice(), b"{}", b"null", cut, &more, b"\xff\xfe"] {
            let error = read(text, at(WRITTEN)).unwrap_err();
            assert!(matches!(error, HistoryError::Damaged(_)), "{error}");
        }
        let text = String::from_utf8(whole).unwrap();
        let unknown = text.replace("\"dead\"", "\"deaf\"");
        assert!(read(unknown.as_bytes(), at(WRITTEN)).is_err());
    }

    #[test]
    fn a_history_of_any_one_kind_is_worth_keeping() {
        let nothing = History::<Tick>::default;
        let History {
            flaps,
            ejections,
            tiers,
            forced,
            down,
            asked,
            shares,
            waiting,
        } = history(0);
        assert!(nothing().is_empty());
        for one in [
            History { flaps, ..nothing() },
            History {
                ejections,
                ..nothing()
            },
            History { tiers, ..nothing() },
            History {
                forced,
                ..nothing()
            },
            History { down, ..nothing() },
            History { asked, ..nothing() },
            History {
                shares,
                ..nothing()
            },
            History {
                waiting,
                ..nothing()
            },
        ] {
            assert!(!one.is_empty(), "{one:?}");
        }
    }

    #[test]
    fn what_another_processor_is_ahead_by_has_just_begun() {
        let text = write(history(101), 100, at(WRITTEN)).unwrap();
        assert_eq!(read(&text, at(WRITTEN)).unwrap(), history(Duration::ZERO));
    }

    #[test]
    fn what_began_before_the_machine_was_started_began_with_it() {
        let long = ticks(Duration::from_secs(60));
        let text = write(history(0), long, at(5_000)).unwrap();
        assert_eq!(
            read(&text, at(5_000)).unwrap(),
            history(Duration::from_secs(5))
        );
    }

    proptest! {
        #[test]
        fn ages_outlast_writing_and_reading_to_a_tick_and_a_millisecond(
            since: Tick, age in 0u64..2_000_000_000, later in 0u64..100_000_000,
        ) {
            let age = Duration::from_millis(age);
            let now = since.wrapping_add(ticks(age));
            let text = write(history(since), now, at(WRITTEN)).unwrap();
            let read = read(&text, at(WRITTEN + later)).unwrap();
            let found = read.forced[0].since;
            let expected = age + Duration::from_millis(later);
            let slack = Duration::from_millis(3);
            prop_assert!(found + slack >= expected && found <= expected + slack, "{found:?} for {expected:?}");
            prop_assert_eq!(&read, &history(found));
        }

        #[test]
        fn no_text_makes_it_fail_otherwise_than_by_an_error(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            length in any::<prop::sample::Index>(),
        ) {
            let mut text = written();
            for (place, byte) in damage {
                let place = place.index(text.len());
                text[place] = byte;
            }
            text.truncate(length.index(text.len()) + 1);
            if let Ok(read) = read(&text, at(WRITTEN + 1_000)) {
                prop_assert!(read.forced.iter().all(|of| of.since <= Duration::from_millis(WRITTEN + 1_000)));
            }
        }
    }
}
