//! Which fragments wait, and how long: no I/O and no clock.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{memory::HeldFrame, tables::FragmentKey};
use tokio::time::Instant;

/// Fragments that wait at most, of some two kilobytes each.
const MOST: usize = 1_024;
/// Of one datagram: 65,535 bytes in fragments of IPv6's least MTU are 54.
const MOST_OF_ONE: usize = 64;
/// How long a datagram's first fragment is waited for. On one path, fragments overtake each other by
/// milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);
/// The pause before the first fragment is looked for anew; each is twice the one before, so that a datagram costs
/// few looks however long it waits.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// What waits.
#[derive(Debug, Default)]
pub struct Holder {
    waiting: BTreeMap<FragmentKey, Waiting>,
    /// Fragments of all datagrams.
    frames: usize,
}

#[derive(Debug)]
struct Waiting {
    frames: Vec<HeldFrame>,
    /// When it is given up.
    until: Instant,
    /// When the first fragment is looked for next.
    next: Instant,
    /// How long after that the next time.
    pause: Duration,
}

impl Holder {
    /// Has a fragment wait; it comes back where there is no room. Its first one is looked for at once, as that may
    /// have come in between.
    pub fn hold(&mut self, now: Instant, frame: HeldFrame) -> Option<HeldFrame> {
        if self.frames >= MOST {
            return Some(frame);
        }
        let waiting = self.waiting.entry(frame.key).or_insert_with(|| Waiting {
            frames: Vec::new(),
            until: now + PATIENCE,
            next: now,
            pause: FIRST_PAUSE,
        });
        if waiting.frames.len() >= MOST_OF_ONE {
            return Some(frame);
        }
        waiting.next = now;
        waiting.frames.push(frame);
        self.frames += 1;
        None
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.next).min()
    }

    /// Datagrams whose first fragments are to be looked for now.
    pub fn due(&self, now: Instant) -> Vec<FragmentKey> {
        let due = self.waiting.iter();
        due.filter(|(_, waiting)| waiting.next <= now)
            .map(|(key, _)| *key)
            .collect()
    }

    /// What goes back, given whether a datagram's first fragment has come: all of it then, or when its time has
    /// run out, in the order in which it was sent; else nothing.
    pub fn look(&mut self, now: Instant, key: &FragmentKey, known: bool) -> Vec<HeldFrame> {
        let Some(waiting) = self.waiting.get_mut(key) else {
            return Vec::new();
        };
        if !known && now < waiting.until {
            waiting.next = (now + waiting.pause).min(waiting.until);
            waiting.pause *= 2;
            return Vec::new();
        }
        let mut frames = self.waiting.remove(key).map_or(Vec::new(), |w| w.frames);
        self.frames -= frames.len();
        frames.sort_by_key(|frame| frame.offset);
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32) -> FragmentKey {
        FragmentKey {
            id,
            ..FragmentKey::default()
        }
    }

    fn frame(id: u32, offset: u32) -> HeldFrame {
        HeldFrame {
            key: key(id),
            offset,
            interface: 3,
            frame: vec![7; 60],
        }
    }

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn fragments_go_back_in_order_once_their_first_one_has_come() {
        let (mut holder, start) = (Holder::default(), now());
        for offset in [2_960, 1_480, 4_440] {
            assert_eq!(holder.hold(start, frame(1, offset)), None);
        }
        assert_eq!(holder.hold(start, frame(2, 8)), None);
        assert_eq!(holder.due(start), [key(1), key(2)]);
        assert_eq!(holder.look(start, &key(1), false), []);
        let back = holder.look(start, &key(1), true);
        let offsets: Vec<_> = back.iter().map(|frame| frame.offset).collect();
        assert_eq!(offsets, [1_480, 2_960, 4_440]);
        assert_eq!(holder.due(start), [key(2)]);
        assert_eq!(holder.look(start, &key(1), true), []);
    }

    #[test]
    fn pauses_grow_until_patience_is_at_its_end() {
        let (mut holder, start) = (Holder::default(), now());
        holder.hold(start, frame(1, 8));
        let (mut at, mut looks) = (start, 0);
        loop {
            looks += 1;
            let back = holder.look(at, &key(1), false);
            if !back.is_empty() {
                assert_eq!(back, [frame(1, 8)]);
                break;
            }
            assert!(holder.due(at).is_empty());
            at = holder.deadline().unwrap();
            assert_eq!(holder.due(at), [key(1)]);
        }
        assert_eq!((at - start, looks), (PATIENCE, 10));
        assert_eq!(holder.deadline(), None);
    }

    #[test]
    fn another_fragment_has_its_first_one_looked_for_at_once_and_waits_no_longer() {
        let (mut holder, start) = (Holder::default(), now());
        holder.hold(start, frame(1, 8));
        holder.look(start, &key(1), false);
        let later = start + PATIENCE - FIRST_PAUSE;
        holder.hold(later, frame(1, 16));
        assert_eq!(holder.due(later), [key(1)]);
        let back = holder.look(start + PATIENCE, &key(1), false);
        assert_eq!(back, [frame(1, 8), frame(1, 16)]);
    }

    #[test]
    fn there_is_room_for_so_many_of_a_datagram_and_in_all() {
        let (mut holder, start) = (Holder::default(), now());
        for place in 0..MOST_OF_ONE as u32 {
            assert_eq!(holder.hold(start, frame(0, 8 * place)), None);
        }
        assert_eq!(holder.hold(start, frame(0, 9)), Some(frame(0, 9)));
        for id in 1..=(MOST - MOST_OF_ONE) as u32 {
            assert_eq!(holder.hold(start, frame(id, 8)), None);
        }
        assert_eq!(holder.hold(start, frame(9_999, 8)), Some(frame(9_999, 8)));
        assert_eq!(holder.look(start, &key(0), true).len(), MOST_OF_ONE);
        assert_eq!(holder.hold(start, frame(9_999, 8)), None);
    }
}
