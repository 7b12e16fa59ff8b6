//! Bookkeeping of numbered datagrams: what was sent, what each receiver ticked off, and what that
//! makes together. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Display, Formatter},
    time::Duration,
};

use tokio::time::Instant;

/// What a sender sent: the numbers from 0 on of each flow, in turn.
#[derive(Debug, Clone)]
pub struct Sent {
    /// When the first datagram was due.
    pub started: Instant,
    /// Until the last one had been sent.
    pub took: Duration,
    /// Sends that had to be repeated for an error that an earlier datagram brought back.
    pub repeated: u64,
    rate: u32,
    flows: usize,
    total: u64,
}

impl Sent {
    /// Nothing yet, over `flows` flows at `rate` a second together.
    pub fn start(flows: usize, rate: u32, started: Instant) -> Self {
        Self {
            started,
            took: Duration::ZERO,
            repeated: 0,
            rate,
            flows,
            total: 0,
        }
    }

    /// Datagrams of all flows.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Datagrams a second, as sent: fewer than asked for where the machine was too busy.
    pub fn held_rate(&self) -> f64 {
        self.total as f64 / self.took.as_secs_f64()
    }

    /// Flow and number of the next datagram.
    pub fn next(&self) -> (usize, u64) {
        let flows = self.flows as u64;
        ((self.total % flows) as usize, self.total / flows)
    }

    /// The next one was sent.
    pub fn count(&mut self) {
        self.total += 1;
    }

    /// How many numbers of `flow` were sent.
    pub fn of_flow(&self, flow: u64) -> u64 {
        let flows = self.flows as u64;
        self.total / flows + u64::from(flow < self.total % flows)
    }

    /// When `number` of `flow` was due.
    pub fn when(&self, flow: u64, number: u64) -> Instant {
        let before = number * self.flows as u64 + flow;
        self.started + Duration::from_secs_f64(before as f64 / f64::from(self.rate))
    }
}

/// What one receiver ticked off.
#[derive(Debug, Clone, Default)]
pub struct Receipts {
    /// The receiver.
    pub name: String,
    /// Datagrams that are no numbered ones.
    pub foreign: u64,
    duplicated: u64,
    reordered: u64,
    flows: HashMap<u64, Ticks>,
}

/// The numbers of one flow that came.
#[derive(Debug, Clone, Default)]
struct Ticks {
    seen: Vec<u64>,
    count: u64,
    highest: u64,
}

impl Ticks {
    /// Whether `number` is new.
    fn tick(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        self.count += u64::from(new);
        new
    }

    fn has(&self, number: u64) -> bool {
        self.seen
            .get((number / 64) as usize)
            .is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

impl Receipts {
    /// None yet.
    pub fn of(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// `number` of `flow` came.
    pub fn tick(&mut self, flow: u64, number: u64) {
        let ticks = self.flows.entry(flow).or_default();
        if !ticks.tick(number) {
            self.duplicated += 1;
            return;
        }
        self.reordered += u64::from(number < ticks.highest);
        ticks.highest = ticks.highest.max(number);
    }

    fn total(&self) -> u64 {
        self.flows.values().map(|ticks| ticks.count).sum()
    }
}

/// Numbers of one flow in a row that nobody received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The flow.
    pub flow: u64,
    /// The first number.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// When the first was due.
    pub at: Instant,
}

/// Every datagram accounted for.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams a second that were asked for.
    pub rate: u32,
    /// And that were sent, as [`Sent::held_rate`] says.
    pub held_rate: f64,
    /// Datagrams that each receiver got, each counted once.
    pub per_receiver: BTreeMap<String, u64>,
    /// What nobody got, by flow and number.
    pub gaps: Vec<Gap>,
    /// Datagrams that came twice or more, to one receiver or several.
    pub duplicated: u64,
    /// Datagrams that came after a later one of their flow.
    pub reordered: u64,
    /// Flows that more than one receiver got datagrams of.
    pub moved: Vec<u64>,
}

impl Delivery {
    /// Compares what was sent with what came.
    pub fn account(sent: &Sent, receipts: Vec<Receipts>) -> Self {
        let per_receiver = receipts
            .iter()
            .map(|of| (of.name.clone(), of.total()))
            .collect();
        let mut delivery = Self {
            sent: sent.total(),
            rate: sent.rate,
            held_rate: sent.held_rate(),
            per_receiver,
            gaps: Vec::new(),
            duplicated: receipts.iter().map(|of| of.duplicated).sum(),
            reordered: receipts.iter().map(|of| of.reordered).sum(),
            moved: Vec::new(),
        };
        for flow in 0..sent.flows as u64 {
            let ticks: Vec<&Ticks> = receipts
                .iter()
                .filter_map(|of| of.flows.get(&flow))
                .collect();
            delivery.account_flow(sent, flow, &ticks);
        }
        delivery
    }

    /// Datagrams that nobody got.
    pub fn missing(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.count).sum()
    }

    fn account_flow(&mut self, sent: &Sent, flow: u64, receipts: &[&Ticks]) {
        if receipts.len() > 1 {
            self.moved.push(flow);
        }
        let mut open: Option<Gap> = None;
        for number in 0..sent.of_flow(flow) {
            match receipts.iter().filter(|ticks| ticks.has(number)).count() {
                0 => match &mut open {
                    Some(gap) => gap.count += 1,
                    None => {
                        let at = sent.when(flow, number);
                        open = Some(Gap {
                            flow,
                            first: number,
                            count: 1,
                            at,
                        });
                    }
                },
                copies => {
                    self.gaps.extend(open.take());
                    self.duplicated += copies as u64 - 1;
                }
            }
        }
        self.gaps.extend(open);
    }
}

impl Display for Delivery {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent ({:.0}/s of {}/s), {} missing in {} gaps, {} duplicated, {} reordered, {} flows moved, {:?}",
            self.sent,
            self.held_rate,
            self.rate,
            self.missing(),
            self.gaps.len(),
            self.duplicated,
            self.reordered,
            self.moved.len(),
            self.per_receiver
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `total` datagrams over two flows, one a millisecond.
    fn sent(total: u64) -> Sent {
        let mut sent = Sent::start(2, 1_000, Instant::now());
        (0..total).for_each(|_| sent.count());
        sent
    }

    fn receipts(name: &str, numbers: &[(u64, u64)]) -> Receipts {
        let mut receipts = Receipts::of(name.into());
        numbers
            .iter()
            .for_each(|&(flow, number)| receipts.tick(flow, number));
        receipts
    }

    #[test]
    fn flows_take_turns() {
        let sent = sent(3);
        assert_eq!((sent.of_flow(0), sent.of_flow(1)), (2, 1));
        assert_eq!(sent.next(), (1, 1));
        assert_eq!(sent.when(1, 1), sent.started + Duration::from_millis(3));
    }

    #[test]
    fn everything_delivered_has_no_gap() {
        let sent = sent(4);
        let all = receipts("a", &[(0, 0), (1, 0), (0, 1), (1, 1)]);
        let delivery = Delivery::account(&sent, vec![all]);
        assert_eq!(
            (delivery.missing(), delivery.duplicated, delivery.reordered),
            (0, 0, 0)
        );
        assert!(delivery.moved.is_empty());
        assert_eq!(delivery.per_receiver, [("a".into(), 4)].into());
    }

    #[test]
    fn a_single_missing_datagram_is_named_and_dated() {
        let sent = sent(6);
        let rest = receipts("a", &[(0, 0), (1, 0), (0, 1), (0, 2), (1, 2)]);
        let delivery = Delivery::account(&sent, vec![rest]);
        let at = sent.started + Duration::from_millis(3);
        assert_eq!(
            delivery.gaps,
            [Gap {
                flow: 1,
                first: 1,
                count: 1,
                at
            }]
        );
    }

    #[test]
    fn datagrams_missing_at_the_end_are_a_gap_too() {
        let delivery = Delivery::account(&sent(6), vec![receipts("a", &[(0, 0), (1, 0)])]);
        assert_eq!((delivery.missing(), delivery.gaps.len()), (4, 2));
    }

    #[test]
    fn a_datagram_that_two_receivers_got_is_duplicated_and_its_flow_moved() {
        let both = vec![receipts("a", &[(0, 0), (1, 0)]), receipts("b", &[(1, 0)])];
        let delivery = Delivery::account(&sent(2), both);
        assert_eq!((delivery.duplicated, delivery.moved), (1, vec![1]));
    }

    #[test]
    fn a_datagram_that_came_twice_is_duplicated_but_not_reordered() {
        let delivery = Delivery::account(&sent(2), vec![receipts("a", &[(0, 0), (1, 0), (0, 0)])]);
        assert_eq!((delivery.duplicated, delivery.reordered), (1, 0));
    }

    #[test]
    fn a_datagram_after_a_later_one_is_reordered() {
        let delivery = Delivery::account(
            &sent(6),
            vec![receipts(
                "a",
                &[(0, 0), (0, 2), (0, 1), (1, 0), (1, 1), (1, 2)],
            )],
        );
        assert_eq!((delivery.missing(), delivery.reordered), (0, 1));
    }
}
