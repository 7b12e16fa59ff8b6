//! What has happened lately: a bounded list of events, numbered without gaps. Pure; whoever records says when.

use std::{collections::VecDeque, time::SystemTime};

use crate::{
    model::ServiceId,
    snapshot::{EventFilter, EventList, EventRecord, Happened},
};

/// Events kept; older ones are only in the log.
const KEPT: usize = 1_024;

/// See above.
#[derive(Debug, Default)]
pub struct Journal {
    events: VecDeque<EventRecord>,
    last: u64,
}

impl Journal {
    /// Takes note of an event at `at`.
    pub fn record(&mut self, at: SystemTime, service: ServiceId, what: Happened, reason: String) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.last += 1;
        self.events.push_back(EventRecord {
            number: self.last,
            at,
            service,
            what,
            reason,
        });
    }

    /// How many events there have been.
    pub fn recorded(&self) -> u64 {
        self.last
    }

    /// The last events that `filter` lets through, oldest first.
    pub fn list(&self, filter: &EventFilter) -> EventList {
        let forgotten = self.last - self.events.len() as u64;
        let matching = self.events.iter().filter(|event| filter.matches(event));
        let mut events: Vec<EventRecord> = matching.cloned().collect();
        events.drain(..events.len().saturating_sub(filter.limit));
        EventList {
            events,
            last: self.last,
            lost: forgotten.saturating_sub(filter.after.unwrap_or(forgotten)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: EventFilter = EventFilter {
        service: None,
        after: None,
        limit: usize::MAX,
    };

    fn journal(events: u64) -> Journal {
        let mut journal = Journal::default();
        for n in 0..events {
            let service = format!("10.0.0.{}:80/tcp", n % 2 + 1).parse().unwrap();
            let what = Happened::Tiers;
            journal.record(SystemTime::UNIX_EPOCH, service, what, n.to_string());
        }
        journal
    }

    fn numbers(list: &EventList) -> Vec<u64> {
        list.events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn the_last_events_are_told_oldest_first() {
        let journal = journal(5);
        assert_eq!(numbers(&journal.list(&ALL)), [1, 2, 3, 4, 5]);
        let last = EventFilter { limit: 2, ..ALL };
        assert_eq!(numbers(&journal.list(&last)), [4, 5]);
        let after = EventFilter {
            after: Some(3),
            ..ALL
        };
        assert_eq!(numbers(&journal.list(&after)), [4, 5]);
        let of_second = EventFilter {
            service: Some("10.0.0.2:80/tcp".parse().unwrap()),
            ..ALL
        };
        assert_eq!(numbers(&journal.list(&of_second)), [2, 4]);
    }

    #[test]
    fn what_is_forgotten_is_counted_for_who_has_missed_it() {
        let journal = journal(KEPT as u64 + 10);
        let list = journal.list(&ALL);
        assert_eq!((list.events.len(), list.lost), (KEPT, 0));
        let after = |after| {
            let after = Some(after);
            journal.list(&EventFilter { after, ..ALL }).lost
        };
        assert_eq!((after(4), after(10), after(500)), (6, 0, 0));
    }
}
