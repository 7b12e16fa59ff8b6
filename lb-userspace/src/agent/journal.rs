//! What has happened lately: a bounded list of events, numbered without gaps. Pure; whoever records says when.

use std::{
    collections::{BTreeMap, VecDeque},
    time::SystemTime,
};

use crate::{
    model::ServiceId,
    snapshot::{EventFilter, EventList, EventRecord, Happened},
};

/// Events kept; older ones are only in the log.
pub const KEPT: usize = 1_024;

/// See above.
#[derive(Debug, Default)]
pub struct Journal {
    events: VecDeque<EventRecord>,
    last: u64,
    epoch: u64,
    /// Of events that are kept no more, by service: how many there were, and the number of the last.
    forgotten: BTreeMap<ServiceId, (u64, u64)>,
}

impl Journal {
    /// Says by what its numbers are told from those of other agents' journals.
    pub fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Takes note of an event at `at`.
    pub fn record(&mut self, at: SystemTime, service: ServiceId, what: Happened, reason: String) {
        if self.events.len() == KEPT
            && let Some(oldest) = self.events.pop_front()
        {
            let (count, last) = self.forgotten.entry(oldest.service).or_default();
            (*count, *last) = (*count + 1, oldest.number);
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

    /// The last events that `filter` lets through, oldest first. Of a number of another agent's, before this one, nothing of
    /// this one was seen then: such a one is of another epoch, or has not been yet.
    pub fn list(&self, filter: &EventFilter) -> EventList {
        let others = filter.epoch.is_some_and(|epoch| epoch != self.epoch);
        let after = match filter.after {
            Some(after) if others || after > self.last => Some(0),
            after => after,
        };
        let filter = EventFilter { after, ..*filter };
        let matching = self.events.iter().filter(|event| filter.matches(event));
        let mut events: Vec<EventRecord> = matching.cloned().collect();
        let cut = events.len().saturating_sub(filter.limit);
        events.drain(..cut);
        EventList {
            events,
            last: self.last,
            epoch: self.epoch,
            lost: after.map_or(0, |after| {
                self.forgotten_since(after, filter.service) + cut as u64
            }),
        }
    }

    /// Events after that number that are kept no more. Of a single service it is only known whether there was any, and how many
    /// there can have been.
    fn forgotten_since(&self, after: u64, service: Option<ServiceId>) -> u64 {
        let all = (self.last - self.events.len() as u64).saturating_sub(after);
        let Some(service) = service else {
            return all;
        };
        match self.forgotten.get(&service) {
            Some(&(count, last)) if last > after => count.min(last - after),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: EventFilter = EventFilter {
        service: None,
        after: None,
        epoch: None,
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

    #[test]
    fn a_number_of_another_agent_is_told_by_its_epoch_however_small_it_is() {
        let mut journal = journal(5);
        journal.begin(1_700_000_000_123);
        let list = |epoch| {
            let filter = EventFilter {
                after: Some(3),
                epoch,
                ..ALL
            };
            let list = journal.list(&filter);
            assert_eq!(list.epoch, 1_700_000_000_123);
            numbers(&list)
        };
        assert_eq!(list(Some(1_700_000_000_123)), [4, 5]);
        assert_eq!(list(None), [4, 5], "by who knows of none");
        assert_eq!(list(Some(1_600_000_000_000)), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn of_a_service_no_more_is_lost_than_it_had() {
        let [quiet, busy] = ["10.0.0.9:80/tcp", "10.0.0.1:80/tcp"].map(|id| id.parse().unwrap());
        let mut journal = Journal::default();
        let mut record = |service, times| {
            for _ in 0..times {
                let reason = String::new();
                journal.record(SystemTime::UNIX_EPOCH, service, Happened::Tiers, reason);
            }
        };
        record(quiet, 3);
        record(busy, KEPT);
        record(quiet, 1);
        let lost = |service, after| {
            let (service, after) = (Some(service), Some(after));
            let filter = EventFilter {
                service,
                after,
                ..ALL
            };
            journal.list(&filter).lost
        };
        // Four are kept no more: three of the one, one of the other.
        assert_eq!((lost(quiet, 0), lost(quiet, 1), lost(quiet, 2)), (3, 2, 1));
        assert_eq!((lost(quiet, 3), lost(busy, 3), lost(busy, 4)), (0, 1, 0));
    }
}
