//! What is told of others that claim a VIP: the first frame at once, those that follow once a minute. Pure; whoever hears says what
//! time it is.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_common::neighbour::Claim;
use tokio::time::Instant;

use super::Owned;

/// From one word of the same claimant to the next.
const PAUSE: Duration = Duration::from_secs(60);
/// Claimants that are told apart: who forges hardware addresses must not fill the memory.
const MOST: usize = 1_024;

/// Somebody else claims a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Which.
    pub vip: IpAddr,
    /// Where it is said to be.
    pub mac: [u8; 6],
    /// Index of the interface that this was heard on.
    pub interface: u32,
    /// How many frames have said so since it was told last.
    pub frames: u64,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    untold: u64,
}

/// See above.
#[derive(Debug, Default)]
pub struct Hearing {
    owned: Owned,
    told: BTreeMap<(IpAddr, [u8; 6], u32), Told>,
}

impl Hearing {
    /// Says whose claims are conflicts from now on.
    pub fn own(&mut self, owned: Owned) {
        self.told.retain(|(vip, ..), _| owned.vips.contains(vip));
        self.owned = owned;
    }

    /// Hears a claim on an interface; what is to be told of it, if anything.
    pub fn hear(&mut self, interface: u32, claim: Claim, now: Instant) -> Option<Conflict> {
        let Claim { address, mac } = claim;
        let vip = IpAddr::from(address);
        let is_others = self.owned.vips.contains(&vip)
            && self.owned.ports.contains_key(&interface)
            && !self.owned.macs.contains(&mac);
        if !is_others {
            return None;
        }
        if self.told.len() >= MOST {
            let recent = |told: &Told| now.duration_since(told.at) < PAUSE;
            self.told.retain(|_, told| recent(told));
        }
        let (key, is_full) = ((vip, mac, interface), self.told.len() >= MOST);
        let frames = match self.told.get_mut(&key) {
            Some(told) if now.duration_since(told.at) < PAUSE => {
                told.untold += 1;
                return None;
            }
            Some(told) => told.untold + 1,
            None if is_full => return None,
            None => 1,
        };
        self.told.insert(key, Told { at: now, untold: 0 });
        Some(Conflict {
            vip,
            mac,
            interface,
            frames,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::{Kind, Port};

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn hearing() -> Hearing {
        let mut hearing = Hearing::default();
        let port = Port {
            index: 4,
            mac: OURS,
            running: true,
            mtu: 1_500,
            kind: Kind::Plain,
            deaf: false,
        };
        hearing.own(Owned {
            vips: ["10.0.0.1".parse().unwrap()].into(),
            ports: [(4, port)].into(),
            macs: [OURS].into(),
        });
        hearing
    }

    fn claim(address: &str, mac: [u8; 6]) -> Claim {
        let address: IpAddr = address.parse().unwrap();
        Claim {
            address: address.into(),
            mac,
        }
    }

    #[test]
    fn others_that_claim_a_vip_where_it_is_announced_are_told() {
        let now = Instant::now();
        let told = hearing().hear(4, claim("10.0.0.1", THEIRS), now);
        let expected = Conflict {
            vip: "10.0.0.1".parse().unwrap(),
            mac: THEIRS,
            interface: 4,
            frames: 1,
        };
        assert_eq!(told, Some(expected));
    }

    #[test]
    fn what_this_host_says_or_is_of_another_address_or_link_is_no_conflict() {
        let now = Instant::now();
        for (interface, address, mac) in [
            (4, "10.0.0.1", OURS),
            (4, "10.0.0.2", THEIRS),
            (5, "10.0.0.1", THEIRS),
        ] {
            assert_eq!(hearing().hear(interface, claim(address, mac), now), None);
        }
    }

    #[test]
    fn who_goes_on_claiming_is_told_once_a_minute_with_a_count() {
        let (now, mut hearing) = (Instant::now(), hearing());
        let mut told = Vec::new();
        for second in 0..=120 {
            let claim = claim("10.0.0.1", THEIRS);
            let heard = hearing.hear(4, claim, now + Duration::from_secs(second));
            told.extend(heard.map(|conflict| (second, conflict.frames)));
        }
        assert_eq!(told, [(0, 1), (60, 60), (120, 60)]);
    }

    #[test]
    fn forged_claimants_fill_no_memory_and_are_forgotten() {
        let (now, mut hearing) = (Instant::now(), hearing());
        let forged = |n: usize| {
            let [a, b, ..] = n.to_le_bytes();
            claim("10.0.0.1", [2, 9, 9, 9, a, b])
        };
        let heard = (0..2 * MOST).filter_map(|n| hearing.hear(4, forged(n), now));
        assert_eq!(heard.count(), MOST);
        assert_eq!(hearing.hear(4, claim("10.0.0.1", THEIRS), now), None);
        let later = hearing.hear(4, claim("10.0.0.1", THEIRS), now + PAUSE);
        assert!(later.is_some());
    }
}
