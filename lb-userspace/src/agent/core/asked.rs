//! What backends' agents ask for, laid over what people want. Pure.
//!
//! An agent can take from its backend what a person gave it, and give back what it took itself; never more:
//! a person's drain stays, and so does a person's limit.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use crate::{
    health::reply::Asked,
    model::{Admin, Backend, Service, ServiceId, State},
};

/// What is asked for, of each backend whose agent asks for something, under the first service of its group.
pub(super) type AllAsked = BTreeMap<(ServiceId, SocketAddr), Asked>;

/// Weights are multiplied by this where a share of a weight is no whole number; a ring goes by their
/// ratios alone ([`lb_common::maglev::fill`]).
const SCALE: u16 = 100;

/// `state` as its backends' agents would have it; nothing where that is no difference.
pub(super) fn lay_over(state: &State, asked: &AllAsked) -> Option<State> {
    let mut services: BTreeMap<ServiceId, Service> = BTreeMap::new();
    let leads: BTreeSet<ServiceId> = asked.keys().map(|&(lead, _)| lead).collect();
    for service in state.services() {
        let lead = state.lead(service.id);
        let mut backends = service.backends.iter();
        if leads.contains(&lead) && backends.any(|b| asked.contains_key(&(lead, b.address))) {
            services.insert(service.id, over(service, lead, asked));
        }
    }
    (!services.is_empty()).then(|| state.overlaid(services.into_values()))
}

/// One service of a pool, whose first is `lead`, as its backends' agents would have it.
pub(super) fn over(service: &Service, lead: ServiceId, asked: &AllAsked) -> Service {
    let mut over = service.clone();
    adapt(&mut over, lead, asked);
    over
}

fn adapt(service: &mut Service, lead: ServiceId, asked: &AllAsked) {
    // Weights that follow it do so by and by; none at all is another matter.
    let by_and_by = service.hears_agents();
    let of = |backend: &Backend| match percent(asked.get(&(lead, backend.address))?, backend) {
        Some(1..) if by_and_by => None,
        percent => percent,
    };
    let shares = service.backends.iter();
    let shares: Vec<(u16, u16)> = shares
        .map(|backend| (backend.weight, of(backend).unwrap_or(100)))
        .collect();
    for (backend, weight) in service.backends.iter_mut().zip(weights(&shares)) {
        backend.weight = weight;
        let Some(asked) = asked.get(&(lead, backend.address)) else {
            continue;
        };
        if declines(asked, backend) && backend.admin == Admin::Active {
            backend.admin = Admin::Draining;
        }
        // Without a limit of its own the service may count no flows, and would have to begin by recording
        // every one: that is a person's to ask for.
        if let (Some(limit), Some(most)) = (&mut backend.max_connections, asked.max_connections)
            && most > 0
        {
            *limit = most.min(*limit);
        }
    }
}

/// Whether a backend whose agent asks so takes no new flows for that: unless it is forced up, which is against the word of its
/// agent, too.
pub(super) fn declines(asked: &Asked, backend: &Backend) -> bool {
    asked.wants_none() && backend.admin != Admin::Up
}

/// The percent of its weight that a backend has whose agent asks so, where it asks for any.
pub(super) fn percent(asked: &Asked, backend: &Backend) -> Option<u16> {
    let forced = backend.admin == Admin::Up;
    asked.weight.filter(|&percent| percent > 0 || !forced)
}

/// The weights that `shares` (weight, percent of it) come to, in a ratio as close as they go.
fn weights(shares: &[(u16, u16)]) -> Vec<u16> {
    match shares.iter().all(|share| parts(share).is_multiple_of(100)) {
        true => scaled(shares, 1),
        false => in_hundredths(shares),
    }
}

/// The same, whether they are whole or not: as fine as can be with the largest still within its type.
fn in_hundredths(shares: &[(u16, u16)]) -> Vec<u16> {
    let largest = shares.iter().map(parts).max().unwrap_or(0);
    let scale = u32::from(u16::MAX) * 100 / largest.max(1);
    scaled(shares, scale.clamp(1, SCALE.into()))
}

/// Hundredths of a weight.
fn parts(&(weight, percent): &(u16, u16)) -> u32 {
    u32::from(weight) * u32::from(percent)
}

fn scaled(shares: &[(u16, u16)], scale: u32) -> Vec<u16> {
    let scaled = |share: &(u16, u16)| {
        let weight = u64::from(parts(share)) * u64::from(scale);
        let weight = weight.div_ceil(100);
        u16::try_from(weight).unwrap_or(u16::MAX)
    };
    shares.iter().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{health::reply::Wants, model::Mode};

    fn backend(n: u8, weight: u16) -> Backend {
        Backend {
            weight,
            ..Backend::at(SocketAddr::from(([10, 2, 0, n], 80)))
        }
    }

    fn state(backends: Vec<Backend>) -> State {
        let service = Service {
            backends,
            ..Service::new("10.0.0.1:80/tcp".parse().unwrap(), Mode::Ipip)
        };
        State::new([service]).unwrap()
    }

    /// Backend 1 as its agent, which asks so, would have it, and the others.
    fn adapted(backends: Vec<Backend>, asked: Asked) -> Vec<Backend> {
        let state = state(backends);
        let service = state.services().next().unwrap();
        let key = (service.id, service.backends[0].address);
        let over = lay_over(&state, &AllAsked::from([(key, asked)])).unwrap();
        over.service(key.0).unwrap().backends.clone()
    }

    fn wants(wants: Wants) -> Asked {
        Asked {
            wants: Some(wants),
            ..Asked::default()
        }
    }

    fn percent(percent: u16) -> Asked {
        Asked {
            weight: Some(percent),
            ..Asked::default()
        }
    }

    #[test]
    fn drain_and_maintenance_take_new_flows_away_and_ready_gives_them_back() {
        for (asked, admin) in [
            (Wants::Drain, Admin::Draining),
            (Wants::Maintenance, Admin::Draining),
            (Wants::Flows, Admin::Active),
        ] {
            let backends = adapted(vec![backend(1, 1), backend(2, 1)], wants(asked));
            assert_eq!(backends[0].admin, admin);
            assert_eq!(backends[1].admin, Admin::Active, "another's agent");
        }
    }

    #[test]
    fn a_persons_drain_is_not_undone_by_an_agent_that_is_ready() {
        let drained = Backend {
            admin: Admin::Draining,
            ..backend(1, 1)
        };
        let backends = adapted(vec![drained], wants(Wants::Flows));
        assert_eq!(backends[0].admin, Admin::Draining);
    }

    #[test]
    fn weights_that_are_whole_stay_small_and_others_are_scaled_together() {
        let weights = |asked| {
            let backends = adapted(vec![backend(1, 4), backend(2, 3)], asked);
            backends.iter().map(|b| b.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(percent(50)), [2, 3]);
        assert_eq!(weights(percent(0)), [0, 3]);
        assert_eq!(weights(percent(100)), [4, 3]);
        assert_eq!(weights(percent(30)), [120, 300]);
    }

    #[test]
    fn who_is_forced_up_takes_flows_against_the_word_of_its_agent_and_less_where_that_asks_for_less()
     {
        let up = Backend {
            admin: Admin::Up,
            ..backend(1, 4)
        };
        for (asked, weight) in [
            (percent(0), 4),
            (percent(50), 2),
            (wants(Wants::Drain), 4),
            (wants(Wants::Maintenance), 4),
        ] {
            let backends = adapted(vec![up.clone(), backend(2, 1)], asked);
            assert_eq!((backends[0].admin, backends[0].weight), (Admin::Up, weight));
        }
    }

    #[test]
    fn a_limit_is_lowered_but_neither_raised_nor_introduced() {
        let limited = |most| Backend {
            max_connections: most,
            ..backend(1, 1)
        };
        let asked = |most| Asked {
            max_connections: Some(most),
            ..Asked::default()
        };
        for (own, agents, limit) in [
            (Some(100), 30, Some(30)),
            (Some(100), 300, Some(100)),
            (Some(100), 0, Some(100)),
            (None, 30, None),
        ] {
            let backends = adapted(vec![limited(own)], asked(agents));
            assert_eq!(backends[0].max_connections, limit);
        }
    }

    #[test]
    fn what_is_asked_of_a_groups_backend_counts_for_every_service_of_the_group() {
        let member = |id: &str| Service {
            group: Some("web".to_owned()),
            backends: vec![backend(1, 4)],
            ..Service::new(id.parse().unwrap(), Mode::L2)
        };
        let ids = ["10.0.0.1:80/tcp", "10.0.0.1:443/tcp"];
        let state = State::new(ids.map(member)).unwrap();
        let lead = state.lead(ids[1].parse().unwrap());
        let asked = AllAsked::from([((lead, backend(1, 4).address), percent(50))]);
        let over = lay_over(&state, &asked).unwrap();
        let weights: Vec<u16> = over.services().map(|s| s.backends[0].weight).collect();
        assert_eq!(weights, [2, 2]);
    }

    #[test]
    fn nothing_asked_and_strangers_change_nothing() {
        let state = state(vec![backend(1, 1)]);
        assert_eq!(lay_over(&state, &AllAsked::new()), None);
        let stranger = ("10.0.0.9:80/tcp".parse().unwrap(), backend(1, 1).address);
        assert_eq!(
            lay_over(&state, &AllAsked::from([(stranger, percent(5))])),
            None
        );
    }

    proptest! {
        #[test]
        fn shares_keep_their_ratio_and_nobody_who_has_some_gets_none(
            shares in prop::collection::vec((0_u16..=1_000, 0_u16..=1_000), 1..20),
        ) {
            let got = weights(&shares);
            let ideal = |&(weight, percent): &(u16, u16)| f64::from(weight) * f64::from(percent);
            let (total, ideal_total) = (
                got.iter().map(|&w| f64::from(w)).sum::<f64>(),
                shares.iter().map(ideal).sum::<f64>(),
            );
            for (share, &weight) in shares.iter().zip(&got) {
                prop_assert_eq!(weight == 0, ideal(share) == 0.0);
                if ideal_total > 0.0 {
                    let (is, should) = (f64::from(weight) / total, ideal(share) / ideal_total);
                    prop_assert!((is - should).abs() < 0.05, "{} of {}", is, should);
                }
            }
        }
    }
}
