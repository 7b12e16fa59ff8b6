//! Owns when a heartbeat counts as missing, and what a datagram of a beat says. Pure: never receives
//! one, never looks at a clock.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use crate::model::{Backend, Check, ServiceId};

/// Largest datagram that is looked at.
pub const MAX_DATAGRAM: usize = 256;

/// The beats of one backend.
#[derive(Debug, Clone)]
pub struct Beats {
    interval: Duration,
    grace: Duration,
    last: Instant,
    missed: u32,
}

/// What the time having come means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Another beat is missing.
    Missed,
    /// The timer came so late that beats may be waiting unread: this host stood still. Says nothing.
    Stalled,
}

impl Beats {
    /// Beats are due every interval of `check` from `now` on, and missing when they are later than its
    /// timeout.
    pub fn new(check: &Check, now: Instant) -> Self {
        Self {
            interval: check.interval,
            grace: check.timeout,
            last: now,
            missed: 0,
        }
    }

    /// A beat has come.
    pub fn beat(&mut self, now: Instant) {
        (self.last, self.missed) = (now, 0);
    }

    /// For how long after a beat the next is waited for.
    pub fn patience(&self) -> Duration {
        self.interval + self.grace
    }

    /// When the next beat counts as missing.
    pub fn due(&self) -> Instant {
        self.last + self.interval * self.missed.saturating_add(1) + self.grace
    }

    /// That time has come, and it is `now`.
    pub fn silence(&mut self, now: Instant) -> Silence {
        if now.saturating_duration_since(self.due()) >= self.interval {
            self.beat(now);
            return Silence::Stalled;
        }
        self.missed = self.missed.saturating_add(1);
        Silence::Missed
    }
}

/// Whose beat a datagram is, of the backends at the address that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Whose {
    /// Of this backend; of all there where absent.
    pub backend: Option<SocketAddr>,
    /// In this service; in all where absent.
    pub service: Option<ServiceId>,
}

impl Whose {
    /// Reads a datagram: nothing, or `ADDRESS:PORT`, or that and `SERVICE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(datagram: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(datagram).map_err(|error| error.to_string())?;
        let mut words = text.split_whitespace();
        let backend = words.next().map(Backend::parse_address).transpose();
        let service = words.next().map(str::parse).transpose();
        if let Some(more) = words.next() {
            return Err(format!(
                "`{more}` is one word too many: ADDRESS:PORT SERVICE"
            ));
        }
        Ok(Self {
            backend: backend.map_err(|error| error.to_string())?,
            service: service.map_err(|error: crate::model::ModelError| error.to_string())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Probe;

    const SECOND: Duration = Duration::from_secs(1);
    const HALF: Duration = Duration::from_millis(500);

    fn beats() -> (Beats, Instant) {
        let now = Instant::now();
        (Beats::new(&Check::new(Probe::Heartbeat {}), now), now)
    }

    #[test]
    fn a_beat_is_missing_once_interval_and_grace_have_passed_and_then_every_interval() {
        let (mut beats, start) = beats();
        for n in 1..5 {
            let due = start + SECOND * n + HALF;
            assert_eq!(beats.due(), due);
            assert_eq!(beats.silence(due), Silence::Missed);
        }
    }

    #[test]
    fn a_beat_begins_the_count_again() {
        let (mut beats, start) = beats();
        beats.silence(beats.due());
        let now = start + SECOND * 2;
        beats.beat(now);
        assert_eq!(beats.due(), now + SECOND + HALF);
    }

    #[test]
    fn a_host_that_stood_still_blames_nobody() {
        let (mut beats, start) = beats();
        let late = start + SECOND * 60;
        assert_eq!(beats.silence(late), Silence::Stalled);
        assert_eq!(beats.due(), late + SECOND + HALF);
    }

    proptest! {
        /// Beats that come no later than the grace allows are never missing.
        #[test]
        fn punctual_beats_are_never_missing(late_ms in prop::collection::vec(0_u64..500, 1..100)) {
            let (mut beats, mut now) = beats();
            for late in late_ms {
                now += SECOND + Duration::from_millis(late);
                prop_assert!(now < beats.due());
                beats.beat(now);
            }
        }
    }

    #[test]
    fn datagrams_name_all_backends_of_their_sender_or_one_or_one_of_a_service() {
        let backend = Some("10.2.0.11:80".parse().unwrap());
        let service = Some("10.0.0.1:80/tcp".parse().unwrap());
        assert_eq!(Whose::parse(b" \n"), Ok(Whose::default()));
        assert_eq!(
            Whose::parse(b"10.2.0.11:80\n"),
            Ok(Whose {
                backend,
                service: None
            })
        );
        assert_eq!(
            Whose::parse(b"10.2.0.11:80 10.0.0.1:80/tcp"),
            Ok(Whose { backend, service })
        );
        for bad in [
            &b"\xff"[..],
            b"here",
            b"10.2.0.11:80 web",
            b"10.2.0.11:80 10.0.0.1:80/tcp x",
        ] {
            assert!(Whose::parse(bad).is_err(), "{bad:?}");
        }
    }
}
