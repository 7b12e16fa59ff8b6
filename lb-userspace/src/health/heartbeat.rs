//! Owns when a heartbeat counts as missing, and what a datagram of a beat says. Pure: never receives
//! one, never looks at a clock.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use crate::{
    health::accrual::Accrual,
    model::{Backend, Check, ServiceId},
};

/// Largest datagram that is looked at.
pub const MAX_DATAGRAM: usize = 256;

/// From when on a timer that comes late says that this host stood still: one of a busy host is late by less, and beats may be
/// due as often as that.
const STOOD_STILL: Duration = Duration::from_millis(250);

/// The longest that a beat is waited for, however rare they have been.
const LONGEST: Duration = Duration::from_secs(2 * 3_600);

/// The beats of one backend.
#[derive(Debug, Clone)]
pub struct Beats {
    interval: Duration,
    grace: Duration,
    /// How long beats are apart, where that says when one is missing.
    learnt: Option<Accrual>,
    /// The last one, or the beginning.
    last: Instant,
    /// Whether there was one.
    heard: bool,
    /// When the next counts as missing.
    due: Instant,
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
    /// timeout, or than beats of late make likely.
    pub fn new(check: &Check, now: Instant) -> Self {
        let mut beats = Self {
            interval: check.interval,
            grace: check.timeout,
            learnt: check
                .phi()
                .map(|phi| Accrual::expecting(phi, check.interval)),
            last: now,
            heard: false,
            due: now,
        };
        beats.wait(now, false);
        beats
    }

    /// Waits as of now.
    fn wait(&mut self, now: Instant, heard: bool) {
        (self.last, self.heard) = (now, heard);
        self.due = now + self.patience();
    }

    /// A beat has come.
    pub fn beat(&mut self, now: Instant) {
        let patience = self.patience();
        if let Some(learnt) = self.learnt.as_mut().filter(|_| self.heard) {
            // Of a silence that made the backend fail, no more is learnt than that patience was too short.
            let passed = now.saturating_duration_since(self.last);
            learnt.note(passed.min(patience));
        }
        self.wait(now, true);
    }

    /// For how long after a beat the next is waited for.
    pub fn patience(&self) -> Duration {
        match &self.learnt {
            Some(learnt) => learnt.patience().min(LONGEST),
            None => self.interval + self.grace,
        }
    }

    /// When the next beat counts as missing.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// That time has come, and it is `now`.
    pub fn silence(&mut self, now: Instant) -> Silence {
        let late = now.saturating_duration_since(self.due);
        if late >= self.interval.max(STOOD_STILL) {
            // Nothing is learnt of it.
            self.wait(now, false);
            return Silence::Stalled;
        }
        // However late the timer is, beats have an interval to come until another one is missing.
        self.due = match late < self.interval {
            true => self.due,
            false => now,
        } + self.interval;
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
    use crate::model::{Detector, Probe};

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

    #[test]
    fn of_beats_that_are_due_often_one_is_missing_each_time_the_timer_comes_however_late_a_busy_host_is()
     {
        let interval = Duration::from_millis(10);
        let check = Check {
            interval,
            timeout: interval,
            ..Check::new(Probe::Heartbeat {})
        };
        let mut beats = Beats::new(&check, Instant::now());
        for late in [0, 9, 10, 25, 200] {
            let now = beats.due() + Duration::from_millis(late);
            assert_eq!(beats.silence(now), Silence::Missed, "{late}");
            let wait = beats.due() - now;
            assert!(
                wait <= interval && (late < 10 || wait == interval),
                "{wait:?}"
            );
        }
        let now = beats.due() + STOOD_STILL;
        assert_eq!(beats.silence(now), Silence::Stalled);
        assert_eq!(beats.due(), now + interval * 2);
    }

    fn learning() -> (Beats, Instant) {
        let now = Instant::now();
        let check = Check {
            detector: Detector::Phi,
            ..Check::new(Probe::Heartbeat {})
        };
        (Beats::new(&check, now), now)
    }

    #[test]
    fn the_wait_for_a_beat_is_learnt_from_those_before() {
        let (mut beats, mut now) = learning();
        // A second, and 5.6 times a quarter of one.
        assert_eq!(beats.patience().as_millis(), 2_403);
        for _ in 0..300 {
            now += SECOND * 3;
            beats.beat(now);
        }
        // Three, and 5.6 times the least that is allowed for.
        assert_eq!(beats.patience().as_millis(), 3_561);
        assert_eq!(beats.due(), now + beats.patience());
        assert_eq!(beats.silence(beats.due()), Silence::Missed);
    }

    #[test]
    fn an_outage_hardly_changes_what_was_learnt_and_a_stall_of_this_host_not_at_all() {
        let (mut beats, mut now) = learning();
        for _ in 0..300 {
            now += SECOND;
            beats.beat(now);
        }
        let before = beats.patience();
        for _ in 0..60 {
            now = beats.due();
            assert_eq!(beats.silence(now), Silence::Missed);
        }
        beats.beat(now);
        let after = beats.patience();
        assert!(
            after >= before && after < before + SECOND / 20,
            "{before:?} {after:?}"
        );
        now = beats.due() + SECOND * 60;
        assert_eq!(beats.silence(now), Silence::Stalled);
        beats.beat(now + SECOND / 10);
        assert_eq!(beats.patience(), after);
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
