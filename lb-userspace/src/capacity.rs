//! What a pool can carry, what it carries, and how many backends it can lose. Pure; it counts nothing itself.
//!
//! What a backend can carry is what is declared of it: `max_connections`, which is enforced as well, and `max_flow_rate` and
//! `max_bandwidth`, against which it is measured. Whichever is scarcest counts for the pool.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    model::{BitRate, Rated},
    snapshot::{BackendState, BackendStatus, ServiceStatus},
};

/// Wholes are in thousandths.
const WHOLE: u64 = 1_000;
/// A weight of 1, of which parts may be in effect.
const WHOLE_WEIGHT: u64 = 10_000;

/// What backends have so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Flows in progress.
    Connections,
    /// New flows a second.
    FlowRate,
    /// Bits a second that it is sent.
    Bandwidth,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connections, Self::FlowRate, Self::Bandwidth];

    /// As metrics and the API call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::FlowRate => "flow_rate",
            Self::Bandwidth => "bandwidth",
        }
    }

    /// How much of it a backend has in use, where that is counted.
    fn load(self, status: &BackendStatus) -> Option<u64> {
        match self {
            Self::Connections => status.connections.map(u64::from),
            Self::FlowRate => status.rates.map(|rates| rates.flows),
            Self::Bandwidth => status.rates.map(|rates| rates.bandwidth.0),
        }
    }

    /// How much of it a backend is said to have.
    fn most(self, status: &BackendStatus) -> Option<u64> {
        let Rated {
            max_flow_rate,
            max_bandwidth,
        } = status.backend.rated;
        match self {
            Self::Connections => status.backend.max_connections.map(u64::from),
            Self::FlowRate => max_flow_rate.map(u64::from),
            Self::Bandwidth => max_bandwidth.map(|BitRate(rate)| rate),
        }
    }
}

/// How loaded a pool is by one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// What the backends that take new flows have of it in use.
    pub load: u64,
    /// What these can have, where each says how much.
    pub most: Option<u64>,
    /// The former as a share of the latter, in thousandths.
    pub utilisation: Option<u64>,
    /// The most loaded backend for its weight over the mean of its tier, in thousandths: 1,000 where all are
    /// equal; the worst tier counts.
    pub imbalance: Option<u64>,
    /// How many backends can fail, the largest first, before the others and standbys cannot carry the load; none of a
    /// pool in panic.
    pub headroom: Option<usize>,
}

/// How loaded a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// By each resource of which the load is counted; there is one at least.
    pub uses: BTreeMap<Resource, Use>,
}

impl Capacity {
    fn worst<T: Ord>(&self, figure: impl Fn(&Use) -> Option<T>) -> Option<T> {
        self.uses.values().filter_map(figure).max()
    }

    /// The highest [`Use::utilisation`].
    pub fn utilisation(&self) -> Option<u64> {
        self.worst(|by| by.utilisation)
    }

    /// The highest [`Use::imbalance`].
    pub fn imbalance(&self) -> Option<u64> {
        self.worst(|by| by.imbalance)
    }

    /// The least [`Use::headroom`].
    pub fn headroom(&self) -> Option<usize> {
        self.uses.values().filter_map(|by| by.headroom).min()
    }

    /// The resource that is over first: of the least headroom, and of several the one that is used most.
    pub fn scarcest(&self) -> Option<Resource> {
        let known = self.uses.iter().filter(|(_, by)| by.utilisation.is_some());
        let scarce = |(_, by): &(&Resource, &Use)| {
            let left = by.headroom.unwrap_or(usize::MAX);
            (left, std::cmp::Reverse(by.utilisation))
        };
        known.min_by_key(scarce).map(|(&resource, _)| resource)
    }
}

/// How loaded a service's pool is, where anything of what its backends have is counted.
pub fn of(status: &ServiceStatus) -> Option<Capacity> {
    let ignores_weights = status.service.scheduler.ignores_weights();
    let of = |resource| {
        let members = status.backends.iter().filter_map(|backend| {
            let state = backend.standing.as_ref()?.state;
            Some(Member::of(resource, backend, state, ignores_weights))
        });
        assess(&members.collect::<Vec<_>>(), status.panic.is_some())
    };
    let uses = Resource::ALL.into_iter();
    let uses: BTreeMap<_, _> = uses.filter_map(|by| Some((by, of(by)?))).collect();
    (!uses.is_empty()).then_some(Capacity { uses })
}

/// What a backend has in use of what it says that it has, in thousandths.
pub fn utilisation(resource: Resource, status: &BackendStatus) -> Option<u64> {
    let (load, most) = (resource.load(status)?, resource.most(status)?);
    thousandths(load, most)
}

fn thousandths(load: u64, most: u64) -> Option<u64> {
    let share = (u128::from(load) * u128::from(WHOLE)).checked_div(most.into())?;
    u64::try_from(share).ok()
}

/// A backend as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    takes: bool,
    stands_by: bool,
    tier: u8,
    /// In ten-thousandths, as it is in effect.
    weight: u64,
    load: Option<u64>,
    most: Option<u64>,
}

impl Member {
    fn of(
        resource: Resource,
        status: &BackendStatus,
        state: BackendState,
        ignores_weights: bool,
    ) -> Self {
        Self {
            takes: state.takes_flows(status.drain.is_some(), status.used_in_panic),
            stands_by: state == BackendState::Standby,
            tier: status.backend.tier,
            weight: match ignores_weights {
                true => WHOLE_WEIGHT,
                false => (status.effective_weight * WHOLE_WEIGHT as f64).round() as u64,
            },
            load: resource.load(status),
            most: resource.most(status),
        }
    }
}

fn assess(members: &[Member], panics: bool) -> Option<Use> {
    let takers: Vec<Member> = members.iter().copied().filter(|m| m.takes).collect();
    let load = total(takers.iter().map(|m| m.load))?;
    if takers.is_empty() {
        return is_known(members).then_some(Use {
            load,
            most: Some(0),
            utilisation: None,
            imbalance: None,
            headroom: Some(0),
        });
    }
    let most = total(takers.iter().map(|m| m.most));
    Some(Use {
        load,
        most,
        utilisation: most.and_then(|most| thousandths(load, most)),
        imbalance: imbalance(&takers),
        // Those that are used already say of themselves that they fail.
        headroom: match panics {
            true => Some(0),
            false => headroom(members, load),
        },
    })
}

/// Their sum, where all are known, or the most that can be told: bandwidths may be declared up to that each.
fn total(figures: impl IntoIterator<Item = Option<u64>>) -> Option<u64> {
    let mut figures = figures.into_iter();
    figures.try_fold(0u64, |total, figure| Some(total.saturating_add(figure?)))
}

fn imbalance(takers: &[Member]) -> Option<u64> {
    let mut tiers: BTreeMap<u8, Vec<&Member>> = BTreeMap::new();
    for member in takers {
        tiers.entry(member.tier).or_default().push(member);
    }
    let of_tier = |members: &Vec<&Member>| {
        let load = total(members.iter().map(|m| Some(m.load.unwrap_or(0)))).unwrap_or(0);
        let weight: u64 = members.iter().map(|m| m.weight).sum();
        let over = |m: &&Member| {
            let own = u128::from(m.load?) * u128::from(WHOLE) * u128::from(weight);
            let over = own.checked_div(u128::from(m.weight) * u128::from(load))?;
            u64::try_from(over).ok()
        };
        members.iter().filter_map(over).max()
    };
    tiers.values().filter_map(of_tier).max()
}

/// Whether there is anybody, and everybody says how much it carries.
fn is_known(members: &[Member]) -> bool {
    !members.is_empty() && members.iter().all(|member| member.most.is_some())
}

/// Nothing where somebody does not say how much it carries.
fn headroom(members: &[Member], load: u64) -> Option<usize> {
    let usable = members.iter().filter(|m| m.takes || m.stands_by);
    let mut each = usable.map(|m| m.most).collect::<Option<Vec<u64>>>()?;
    each.sort_unstable();
    let mut left: u128 = each.iter().map(|&most| u128::from(most)).sum();
    let mut lost = 0;
    while let Some(largest) = each.pop() {
        left -= u128::from(largest);
        // With nobody left, no flow is carried, be the load as small as it may.
        if left < u128::from(load) || each.is_empty() {
            break;
        }
        lost += 1;
    }
    Some(lost)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(load: u64, most: u64) -> Member {
        Member {
            takes: true,
            stands_by: false,
            tier: 0,
            weight: 1,
            load: Some(load),
            most: Some(most),
        }
    }

    #[test]
    fn utilisation_imbalance_and_headroom_are_of_the_whole_pool() {
        let pool = [member(30, 100), member(60, 100), member(30, 100)];
        let expected = Use {
            load: 120,
            most: Some(300),
            utilisation: Some(400),
            imbalance: Some(1_500),
            headroom: Some(1),
        };
        assert_eq!(assess(&pool, false), Some(expected));
    }

    #[test]
    fn the_largest_backends_are_the_ones_to_be_missed() {
        let pool = [member(10, 1_000), member(10, 30), member(10, 30)];
        assert_eq!(assess(&pool, false).unwrap().headroom, Some(2));
        let pool = [member(50, 1_000), member(10, 30), member(10, 30)];
        assert_eq!(assess(&pool, false).unwrap().headroom, Some(0));
    }

    #[test]
    fn standbys_count_for_headroom_alone_and_others_not_at_all() {
        let standby = Member {
            takes: false,
            stands_by: true,
            ..member(0, 100)
        };
        let down = Member {
            stands_by: false,
            ..standby
        };
        let capacity = assess(&[member(80, 100), standby, down], false).unwrap();
        assert_eq!((capacity.most, capacity.headroom), (Some(100), Some(1)));
    }

    #[test]
    fn who_has_to_pass_a_check_first_takes_nothing_and_who_is_among_the_first_does() {
        let starting = |drains, used| BackendState::Starting.takes_flows(drains, used);
        assert!(starting(false, false));
        assert!(!starting(true, false));
        assert!(starting(true, true));
    }

    #[test]
    fn a_pool_of_which_nobody_takes_flows_has_nobody_to_spare() {
        let down = Member {
            takes: false,
            ..member(7, 100)
        };
        let capacity = assess(&[down, down], false).unwrap();
        assert_eq!((capacity.load, capacity.headroom), (0, Some(0)));
        assert_eq!(capacity.utilisation, None);
        // But where nothing is said of what they carry, there is nothing to tell.
        let unlimited = Member { most: None, ..down };
        assert_eq!(assess(&[down, unlimited], false), None);
        assert_eq!(assess(&[], false), None);
    }

    #[test]
    fn sums_of_what_backends_are_said_to_carry_do_not_wrap() {
        let pool = [member(u64::MAX, u64::MAX); 3];
        let capacity = assess(&pool, false).unwrap();
        assert_eq!((capacity.load, capacity.most), (u64::MAX, Some(u64::MAX)));
        let idle = [member(1, u64::MAX); 3];
        assert_eq!(assess(&idle, false).unwrap().headroom, Some(2));
    }

    #[test]
    fn a_pool_in_panic_counts_whom_it_uses_and_has_nobody_to_spare() {
        let pool = [member(10, 100), member(30, 100)];
        let capacity = assess(&pool, true).unwrap();
        assert_eq!((capacity.load, capacity.most), (40, Some(200)));
        assert_eq!(capacity.headroom, Some(0));
        assert_eq!(assess(&pool, false).unwrap().headroom, Some(1));
    }

    #[test]
    fn weights_are_what_balance_is_measured_by_within_a_tier() {
        let weighed = |weight, load, tier| Member {
            weight,
            tier,
            ..member(load, 100)
        };
        let even = [weighed(3, 30, 0), weighed(1, 10, 0), weighed(1, 2, 1)];
        assert_eq!(assess(&even, false).unwrap().imbalance, Some(1_000));
        assert_eq!(assess(&[member(0, 100)], false).unwrap().imbalance, None);
    }

    #[test]
    fn what_is_not_said_or_counted_is_not_known() {
        let unlimited = Member {
            most: None,
            ..member(5, 1)
        };
        let capacity = assess(&[member(5, 100), unlimited], false).unwrap();
        assert_eq!((capacity.utilisation, capacity.headroom), (None, None));
        assert_eq!(capacity.imbalance, Some(1_000));
        let uncounted = Member {
            load: None,
            ..member(0, 100)
        };
        assert_eq!(assess(&[uncounted], false), None);
    }

    #[test]
    fn the_scarcest_resource_counts_for_the_pool() {
        let by = |pool: &[Member]| assess(pool, false).unwrap();
        let pool = |load, most| [member(load, most); 4];
        let uses = [
            (Resource::Connections, by(&pool(10, 100))),
            (Resource::FlowRate, by(&pool(70, 100))),
            (
                Resource::Bandwidth,
                by(&[
                    member(60, 100),
                    member(20, 100),
                    member(0, 100),
                    member(0, 100),
                ]),
            ),
        ];
        let mut capacity = Capacity { uses: uses.into() };
        assert_eq!(capacity.utilisation(), Some(700));
        assert_eq!(capacity.headroom(), Some(1));
        assert_eq!(capacity.imbalance(), Some(3_000));
        assert_eq!(capacity.scarcest(), Some(Resource::FlowRate));
        // One more than it has is missed, and of which it is known is what counts.
        let unknown = Member {
            most: None,
            ..member(5, 1)
        };
        capacity.uses.insert(Resource::FlowRate, by(&[unknown]));
        assert_eq!(capacity.scarcest(), Some(Resource::Bandwidth));
        assert_eq!(
            (capacity.utilisation(), capacity.headroom()),
            (Some(200), Some(3))
        );
    }

    proptest! {
        #[test]
        fn after_losing_as_many_as_the_headroom_says_the_rest_carries_the_load(
            pool in prop::collection::vec((0..100u64, 1..100u64), 1..12),
        ) {
            let pool: Vec<Member> = pool.into_iter().map(|(load, most)| member(load, most)).collect();
            let capacity = assess(&pool, false).unwrap();
            let lost = capacity.headroom.unwrap();
            let mut most: Vec<u64> = pool.iter().filter_map(|m| m.most).collect();
            most.sort_unstable();
            let left = |lost: usize| most[..most.len() - lost].iter().sum::<u64>();
            prop_assert!(lost == 0 || left(lost) >= capacity.load);
            prop_assert!(lost < most.len());
            prop_assert!(lost + 1 == most.len() || left(lost + 1) < capacity.load);
        }
    }
}
