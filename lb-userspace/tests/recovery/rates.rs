//! How much backends get a second, against what they are said to carry.

use std::{net::SocketAddr, time::Duration};

use lb_common::tables::Tables as _;
use lb_userspace::{
    capacity::{self, Capacity, Resource},
    model::{BitRate, Change, EditRated},
    snapshot::Rates,
};

use crate::{
    pool::{Pool, address, id},
    reach::wind,
};

const SAID: &str = ", max_flow_rate = 100, max_bandwidth = \"8Mbit/s\"";

/// So many seconds pass, in each of which the first backends get so many new flows, of so many bytes each.
fn pass(pool: &mut Pool, seconds: u64, each: &[(u64, u64)]) {
    for _ in 0..seconds {
        wind(&pool.core, Duration::from_secs(1));
        for (n, &(flows, bytes)) in (1..).zip(each) {
            let placed = pool.core.layout().placed(id()).unwrap();
            let backend = placed.member(address(n)).unwrap().1.backend;
            for _ in 0..flows {
                pool.core
                    .dataplane()
                    .tables
                    .count_backend(&backend, bytes, true);
            }
        }
        pool.core.measure();
    }
}

fn capacity(pool: &Pool) -> Option<Capacity> {
    capacity::of(&pool.core.service(id()).unwrap())
}

#[test]
fn what_backends_get_a_second_is_measured_without_a_flow_that_is_recorded() {
    let mut pool = Pool::new("", &[SAID; 4]);
    pass(&mut pool, 1, &[(0, 0); 4]);
    pass(
        &mut pool,
        5,
        &[(50, 1_000), (50, 1_000), (50, 1_000), (90, 1_000)],
    );
    let service = pool.core.service(id()).unwrap();
    assert!(!service.service.records_every_flow());
    let rates = |n| pool.status(n).rates.unwrap();
    let Rates {
        flows,
        bandwidth: BitRate(bits),
    } = rates(1);
    assert!(
        flows == 50 && (399_000..=401_000).contains(&bits),
        "{flows} {bits}"
    );
    assert_eq!(rates(4).flows, 90);
    let capacity = capacity(&pool).unwrap();
    let by = capacity.uses[&Resource::FlowRate];
    assert_eq!(
        (by.load, by.most, by.utilisation),
        (240, Some(400), Some(600))
    );
    // Of four hundred, 240 are needed; the most loaded one has 90 of 60 on average.
    assert_eq!((by.headroom, by.imbalance), (Some(1), Some(1_500)));
    let by = capacity.uses[&Resource::Bandwidth];
    assert!((1_915_000..=1_925_000).contains(&by.load), "{}", by.load);
    assert!(matches!(by.utilisation, Some(59 | 60)));
    assert_eq!(by.headroom, Some(3));
    assert_eq!(capacity.headroom(), Some(1));
    assert_eq!(capacity.scarcest(), Some(Resource::FlowRate));
    assert!(!capacity.uses.contains_key(&Resource::Connections));
}

#[test]
fn a_burst_counts_for_little_and_what_lasts_is_followed() {
    let mut pool = Pool::new("", &[SAID; 2]);
    pass(&mut pool, 60, &[(10, 100); 2]);
    pass(&mut pool, 1, &[(110, 100), (10, 100)]);
    let flows = |pool: &Pool| pool.status(1).rates.unwrap().flows;
    assert!((18..=21).contains(&flows(&pool)), "{}", flows(&pool));
    pass(&mut pool, 30, &[(110, 100), (10, 100)]);
    assert!((100..110).contains(&flows(&pool)), "{}", flows(&pool));
}

#[test]
fn nothing_is_measured_where_nobody_says_what_it_carries_and_all_as_soon_as_somebody_does() {
    let mut pool = Pool::new("", &[""; 2]);
    pass(&mut pool, 5, &[(10, 100); 2]);
    assert_eq!((pool.status(1).rates, capacity(&pool)), (None, None));
    let say = |pool: &mut Pool, most: Option<u32>| {
        pool.change(Change::EditBackend {
            id: id(),
            address: address(1),
            weight: None,
            admin: None,
            max_connections: None,
            rated: EditRated {
                max_flow_rate: Some(most),
                max_bandwidth: None,
            },
            tier: None,
        });
    };
    say(&mut pool, Some(40));
    pass(&mut pool, 2, &[(10, 100); 2]);
    assert_eq!(pool.status(2).rates.unwrap().flows, 10);
    let by = capacity(&pool).unwrap().uses[&Resource::FlowRate];
    assert_eq!((by.load, by.imbalance), (20, Some(1_000)));
    assert_eq!(
        (by.most, by.headroom),
        (None, None),
        "not everybody says it"
    );
    say(&mut pool, None);
    pass(&mut pool, 2, &[(10, 100); 2]);
    assert_eq!(pool.status(1).rates, None);
}

#[test]
fn a_standby_counts_for_headroom_and_another_backend_in_a_place_begins_anew() {
    let keys = "health = { type = \"none\" }";
    let mut pool = Pool::new(keys, &[SAID, SAID, ", max_flow_rate = 100, tier = 1"]);
    pass(&mut pool, 10, &[(60, 100), (60, 100), (0, 0)]);
    let by = |pool: &Pool| capacity(pool).unwrap().uses[&Resource::FlowRate];
    assert_eq!((by(&pool).most, by(&pool).headroom), (Some(200), Some(1)));
    pool.add(9, 1);
    pass(&mut pool, 1, &[(60, 100), (60, 100)]);
    let new: SocketAddr = address(9);
    let service = pool.core.service(id()).unwrap();
    let status = service.backend(new).unwrap();
    assert_eq!(status.rates, None, "it has been looked at once");
}
