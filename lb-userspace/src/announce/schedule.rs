//! What is announced when: a VIP, three times a second apart, on each link that it has come to. Pure; whoever asks says what time
//! it is.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::Owned;

/// How often each is said (MAX_NEIGHBOR_ADVERTISEMENT, RFC 4861 §10; RFC 5227 §2.3 says it twice).
const TIMES: u8 = 3;
/// From one to the next (RetransTimer, RFC 4861 §10).
const PAUSE: Duration = Duration::from_secs(1);

/// A VIP to be announced on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Index of the interface.
    pub interface: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What is there.
    pub vip: IpAddr,
}

/// What is still to be said.
#[derive(Debug, Clone, Copy)]
struct Pending {
    left: u8,
    due: Instant,
}

/// A VIP on an interface.
type Place = (u32, IpAddr);

/// See above.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Where each VIP is, by the hardware address that it has there.
    places: BTreeMap<Place, [u8; 6]>,
    pending: BTreeMap<Place, Pending>,
}

impl Schedule {
    /// Has what is new announced from `now` on: a VIP, an interface, its link or its hardware address. What is gone is said no more.
    pub fn own(&mut self, owned: &Owned, now: Instant) {
        let running = owned.ports.iter().filter(|(_, port)| port.running);
        let places: BTreeMap<Place, [u8; 6]> = running
            .flat_map(|(&index, port)| owned.vips.iter().map(move |&vip| ((index, vip), port.mac)))
            .collect();
        let before = std::mem::replace(&mut self.places, places);
        self.pending
            .retain(|place, _| self.places.contains_key(place));
        let new = self.places.iter();
        let new = new.filter(|(place, mac)| before.get(place) != Some(mac));
        for (&place, _) in new {
            self.pending.insert(place, Pending::from(now));
        }
    }

    /// Has a VIP, or all, announced once more.
    pub fn again(&mut self, vip: Option<IpAddr>, now: Instant) {
        let places = self.places.keys();
        for &place in places.filter(|place| vip.is_none_or(|vip| place.1 == vip)) {
            self.pending.insert(place, Pending::from(now));
        }
    }

    /// When something is to be said next.
    pub fn next(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.due).min()
    }

    /// What is to be said by `now`.
    pub fn due(&mut self, now: Instant) -> Vec<Announcement> {
        let mut due = Vec::new();
        self.pending.retain(|&(interface, vip), pending| {
            if pending.due > now {
                return true;
            }
            let Some(&mac) = self.places.get(&(interface, vip)) else {
                return false;
            };
            due.push(Announcement {
                interface,
                mac,
                vip,
            });
            pending.left -= 1;
            pending.due = now + PAUSE;
            pending.left > 0
        });
        due
    }
}

impl From<Instant> for Pending {
    fn from(due: Instant) -> Self {
        Self { left: TIMES, due }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::{Kind, Port};

    const FIRST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const VIP: &str = "10.0.0.1";

    fn owned(vips: &[&str], ports: &[(u32, [u8; 6], bool)]) -> Owned {
        let port = |&(index, mac, running)| {
            (
                index,
                Port {
                    index,
                    mac,
                    running,
                    mtu: 1_500,
                    kind: Kind::Plain,
                    deaf: false,
                },
            )
        };
        Owned {
            vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
            ports: ports.iter().map(port).collect(),
            macs: ports.iter().map(|&(_, mac, _)| mac).collect(),
        }
    }

    /// What is said, by seconds since `start`, in the order of time.
    fn said(schedule: &mut Schedule, start: Instant) -> Vec<(u64, u32, String)> {
        let mut said = Vec::new();
        while let Some(due) = schedule.next() {
            for announcement in schedule.due(due) {
                let vip = announcement.vip.to_string();
                said.push((
                    due.duration_since(start).as_secs(),
                    announcement.interface,
                    vip,
                ));
            }
        }
        said
    }

    fn three(interface: u32, vip: &str) -> Vec<(u64, u32, String)> {
        (0..3)
            .map(|second| (second, interface, vip.to_owned()))
            .collect()
    }

    #[test]
    fn a_vip_is_announced_three_times_on_each_running_link_a_second_apart() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        let ports = [(4, FIRST, true), (5, SECOND, false)];
        schedule.own(&owned(&[VIP, "fd00::1"], &ports), start);
        let said = said(&mut schedule, start);
        let expected = (0..3).flat_map(|second| {
            [
                (second, 4, VIP.to_owned()),
                (second, 4, "fd00::1".to_owned()),
            ]
        });
        assert_eq!(said, expected.collect::<Vec<_>>());
    }

    #[test]
    fn what_is_known_is_not_announced_again_when_something_else_comes() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        schedule.own(&owned(&[VIP], &[(4, FIRST, true)]), start);
        said(&mut schedule, start);
        schedule.own(&owned(&[VIP, "10.0.0.2"], &[(4, FIRST, true)]), start);
        assert_eq!(said(&mut schedule, start), three(4, "10.0.0.2"));
        schedule.own(
            &owned(&[VIP], &[(4, FIRST, true), (5, SECOND, true)]),
            start,
        );
        assert_eq!(said(&mut schedule, start), three(5, VIP));
    }

    #[test]
    fn a_link_that_comes_back_and_one_with_another_address_hear_it_anew() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        schedule.own(&owned(&[VIP], &[(4, FIRST, true)]), start);
        said(&mut schedule, start);
        schedule.own(&owned(&[VIP], &[(4, FIRST, false)]), start);
        assert_eq!(said(&mut schedule, start), []);
        schedule.own(&owned(&[VIP], &[(4, FIRST, true)]), start);
        assert_eq!(said(&mut schedule, start), three(4, VIP));
        schedule.own(&owned(&[VIP], &[(4, SECOND, true)]), start);
        let first = schedule.due(start);
        assert_eq!(first.iter().map(|a| a.mac).collect::<Vec<_>>(), [SECOND]);
    }

    #[test]
    fn what_has_gone_is_said_no_more() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        schedule.own(&owned(&[VIP], &[(4, FIRST, true)]), start);
        assert_eq!(schedule.due(start).len(), 1);
        schedule.own(&owned(&[], &[(4, FIRST, true)]), start);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn one_or_all_are_announced_once_more_when_somebody_asks() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        schedule.own(&owned(&[VIP, "10.0.0.2"], &[(4, FIRST, true)]), start);
        said(&mut schedule, start);
        schedule.again(Some(VIP.parse().unwrap()), start);
        assert_eq!(said(&mut schedule, start), three(4, VIP));
        schedule.again(None, start);
        assert_eq!(said(&mut schedule, start).len(), 6);
        schedule.again(Some("10.0.0.9".parse().unwrap()), start);
        assert_eq!(said(&mut schedule, start), []);
    }
}
