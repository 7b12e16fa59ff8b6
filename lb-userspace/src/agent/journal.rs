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

    /// The last events that `filter` lets through, oldest first. A number that has not been yet is another
    /// agent's, before this one: nothing of this one was seen then.
    pub fn list(&self, filter: &EventFilter) -> EventList {
        let after = match filter.after {
            Some(after) if after > self.last => Some(0),
            after => after,
        };
        let filter = EventFilter { after, ..*filter };
        let forgotten = self.last - self.events.len() as u64;
        let matching = self.events.iter().filter(|event| filter.matches(event));
        let mut events: Vec<EventRecord> = matching.cloned().collect();
        let cut = events.len().saturating_sub(filter.limit);
        events.drain(..cut);
        EventList {
            events,
            last: self.last,
            lost: after.map_or(0, |after| forgotten.saturating_sub(after) + cut as u64),
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

    #[test]
    fn what_the_limit_leaves_out_is_lost_to_who_asks_for_all_since() {
        let journal = journal(10);
        let list = |after| {
            let limit = 3;
            let filter = EventFilter {
                after,
                limit,
                ..ALL
            };
            let list = journal.list(&filter);
            (numbers(&list), list.lost)
        };
        assert_eq!(list(Some(4)), (vec![8, 9, 10], 3));
        assert_eq!(list(Some(7)), (vec![8, 9, 10], 0));
        assert_eq!(list(None), (vec![8, 9, 10], 0));
    }

    #[test]
    fn who_has_followed_another_agent_is_told_all_of_this_one() {
        let filter = EventFilter {
            after: Some(300),
            ..ALL
        };
        let list = journal(2).list(&filter);
        assert_eq!((numbers(&list), list.lost, list.last), (vec![1, 2], 0, 2));
    }
}
