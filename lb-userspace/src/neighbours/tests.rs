//! The resolver against the real kernel, in network namespaces. Need root.

use std::{net::UdpSocket, time::Duration};

use tokio::{sync::mpsc, time};

use super::{
    netns::{Netns, available},
    *,
};

const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

macro_rules! needs_root {
    ($test:literal) => {
        if !available(concat!("neighbours::", $test)) {
            return;
        }
    };
}

/// A balancer (`v0`: 10.99.0.1, fd99::1) and a peer (`v1`: .2) on one link.
fn world() -> (Netns, Netns) {
    let (lb, peer) = (Netns::new("lb"), Netns::new("peer"));
    lb.ip(&format!(
        "link add v0 type veth peer name v1 netns {}",
        peer.name()
    ));
    lb.ip("link set v0 address 02:00:00:00:00:01
        address add 10.99.0.1/24 dev v0
        address add fd99::1/64 dev v0 nodad
        link set lo up
        link set v0 up");
    peer.ip("link set v1 address 02:00:00:00:00:02
        address add 10.99.0.2/24 dev v1
        address add fd99::2/64 dev v1 nodad
        link set v1 up");
    (lb, peer)
}

/// A resolver that watches `addresses`, and the news it sends.
struct Watch {
    resolver: Resolver,
    updates: mpsc::Receiver<Update>,
}

impl Watch {
    fn new(addresses: &[&str]) -> Self {
        let (resolver, updates) = Resolver::spawn(Origin::default()).unwrap();
        let watch = Self { resolver, updates };
        watch.set(addresses);
        watch
    }

    fn set(&self, addresses: &[&str]) {
        self.resolver
            .watch(addresses.iter().map(|ip| ip.parse().unwrap()).collect());
    }

    async fn until<T>(&mut self, mut wanted: impl FnMut(Update) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            loop {
                let update = self.updates.recv().await.unwrap();
                seen.push(format!("{update:?}"));
                if let Some(found) = wanted(update) {
                    return found;
                }
            }
        };
        let found = time::timeout(Duration::from_secs(15), search).await;
        found.unwrap_or_else(|_| panic!("only came: {seen:#?}"))
    }

    /// Waits until `ip` has a next hop that is as `wanted` says.
    async fn next_hop(&mut self, ip: &str, wanted: impl Fn(&NextHop) -> bool) -> NextHop {
        let ip: IpAddr = ip.parse().unwrap();
        self.until(|update| match update {
            Update::NextHop {
                address, next_hop, ..
            } if address == ip => next_hop.filter(&wanted),
            _ => None,
        })
        .await
    }

    /// Waits until each of `ips` has a next hop that is as `wanted` says, in any order.
    async fn next_hops(&mut self, ips: &[&str], wanted: impl Fn(&NextHop) -> bool) {
        let mut left: BTreeSet<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        self.until(|update| {
            if let Update::NextHop {
                address,
                next_hop: Some(next_hop),
                ..
            } = update
                && wanted(&next_hop)
            {
                left.remove(&address);
            }
            left.is_empty().then_some(())
        })
        .await;
    }

    /// Waits until `ip` has no next hop for a reason that contains `text`.
    async fn none(&mut self, ip: &str, text: &str) {
        let ip: IpAddr = ip.parse().unwrap();
        self.until(|update| match update {
            Update::NextHop {
                address,
                next_hop: None,
                reason,
            } if address == ip => reason.filter(|reason| reason.contains(text)).map(drop),
            _ => None,
        })
        .await;
    }

    async fn own(&mut self, wanted: impl Fn(&BTreeSet<IpAddr>) -> bool) {
        self.until(|update| match update {
            Update::OwnAddresses(own) if wanted(&own) => Some(()),
            _ => None,
        })
        .await;
    }
}

/// Speaks to the balancer, which then learns the peer's hardware address.
fn greet(peer: &Netns, from: &str, to: &str) {
    peer.enter(|| async {
        UdpSocket::bind((from, 0))
            .unwrap()
            .send_to(b"hello", (to, 9))
            .unwrap();
    });
}

#[test]
fn neighbours_on_the_link_are_resolved_without_any_traffic() {
    needs_root!("neighbours_on_the_link_are_resolved_without_any_traffic");
    let (lb, _peer) = world();
    lb.enter(|| async {
        let interface = nix::net::if_::if_nametoindex("v0").unwrap();
        for (ip, own) in [("10.99.0.2", "10.99.0.1"), ("fd99::2", "fd99::1")] {
            let begin = time::Instant::now();
            let next_hop = Watch::new(&[ip]).next_hop(ip, |_| true).await;
            let source_address = own.parse().unwrap();
            let (source_mac, destination_mac) = (LB_MAC, PEER_MAC);
            let mtu = 1500;
            let expected = NextHop {
                interface,
                source_mac,
                destination_mac,
                source_address,
                mtu,
                on_link: true,
            };
            assert_eq!(next_hop, expected);
            assert!(
                begin.elapsed() < Duration::from_secs(3),
                "asked at once, not at a refresh"
            );
        }
    });
}

#[test]
fn gateway_mac_and_mtu_and_source_of_the_route_are_used() {
    needs_root!("gateway_mac_and_mtu_and_source_of_the_route_are_used");
    let (lb, _peer) = world();
    lb.ip("address add 10.99.0.77/24 dev v0
        route add 10.50.0.0/16 via 10.99.0.2 src 10.99.0.77 mtu 1400
        route add 10.60.0.0/16 via inet6 fd99::2
        -6 route add fd50::/64 via fd99::2");
    lb.enter(|| async {
        for (ip, source, mtu) in [
            ("10.50.1.1", "10.99.0.77", 1400),
            ("10.60.1.1", "10.99.0.1", 1500),
            ("fd50::1", "fd99::1", 1500),
        ] {
            let next_hop = Watch::new(&[ip]).next_hop(ip, |_| true).await;
            assert_eq!(next_hop.destination_mac, PEER_MAC);
            assert_eq!(
                (next_hop.source_address, next_hop.mtu),
                (source.parse().unwrap(), mtu)
            );
        }
    });
}

#[test]
fn changed_hardware_addresses_of_either_side_are_followed() {
    needs_root!("changed_hardware_addresses_of_either_side_are_followed");
    let (lb, peer) = world();
    lb.enter(|| async {
        for (ip, own, last) in [("10.99.0.2", "10.99.0.1", 3), ("fd99::2", "fd99::1", 4)] {
            let mut watch = Watch::new(&[ip]);
            watch.next_hop(ip, |_| true).await;
            peer.ip(&format!("link set v1 address 02:00:00:00:00:0{last}"));
            greet(&peer, ip, own);
            watch
                .next_hop(ip, |hop| hop.destination_mac == [2, 0, 0, 0, 0, last])
                .await;
            lb.ip(&format!("link set v0 address 02:00:00:00:00:1{last}"));
            watch
                .next_hop(ip, |hop| hop.source_mac == [2, 0, 0, 0, 0, 0x10 + last])
                .await;
        }
    });
}

#[test]
fn changed_routes_are_followed() {
    needs_root!("changed_routes_are_followed");
    let (lb, peer) = world();
    peer.ip("link add v2 type veth peer name v3
        link set v2 address 02:00:00:00:00:22
        address add 10.99.0.3/24 dev v1");
    lb.enter(|| async {
        let ip = "10.50.0.1";
        let mut watch = Watch::new(&[ip]);
        watch.none(ip, "no route").await;
        lb.ip("route add 10.50.0.0/16 via 10.99.0.2");
        watch.next_hop(ip, |hop| hop.mtu == 1500).await;
        lb.ip("route replace 10.50.0.0/16 via 10.99.0.2 mtu 1300");
        watch.next_hop(ip, |hop| hop.mtu == 1300).await;
        lb.ip("route replace blackhole 10.50.0.0/16 metric 0");
        watch.none(ip, "").await;
        lb.ip("route replace 10.50.0.0/16 via 10.99.0.3");
        watch.next_hop(ip, |_| true).await;
        // The kernel sends no event for the IPv4 routes that go with the link.
        lb.ip("link set v0 down");
        watch.none(ip, "").await;
    });
}

#[test]
fn changed_mtus_of_links_are_followed() {
    needs_root!("changed_mtus_of_links_are_followed");
    let (lb, _peer) = world();
    lb.enter(|| async {
        let ips = ["10.99.0.2", "fd99::2"];
        let mut watches = ips.map(|ip| Watch::new(&[ip]));
        for mtu in [1500, 1400, 9000] {
            lb.ip(&format!("link set v0 mtu {mtu}"));
            for (watch, ip) in watches.iter_mut().zip(ips) {
                watch.next_hop(ip, |hop| hop.mtu == mtu).await;
            }
        }
        lb.ip("route add 10.99.0.2 dev v0 mtu 8000");
        watches[0].next_hop(ips[0], |hop| hop.mtu == 8000).await;
    });
}

#[test]
fn own_addresses_are_reported_at_first_and_when_they_change() {
    needs_root!("own_addresses_are_reported_at_first_and_when_they_change");
    let (lb, _peer) = world();
    lb.enter(|| async {
        let mut watch = Watch::new(&[]);
        let has = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            move |own: &BTreeSet<IpAddr>| own.contains(&ip)
        };
        watch
            .own(|own| has("10.99.0.1")(own) && has("fd99::1")(own) && has("127.0.0.1")(own))
            .await;
        lb.ip("address add 192.0.2.1/32 dev lo");
        watch.own(has("192.0.2.1")).await;
        lb.ip("address del 192.0.2.1/32 dev lo");
        watch.own(|own| !has("192.0.2.1")(own)).await;
        lb.ip("link del v0");
        watch
            .own(|own| !has("10.99.0.1")(own) && !has("fd99::1")(own))
            .await;
    });
}

#[test]
fn addresses_that_no_neighbour_takes_have_a_reason_instead() {
    needs_root!("addresses_that_no_neighbour_takes_have_a_reason_instead");
    let (lb, _peer) = world();
    lb.ip("tuntap add mode tun name t0
        address add 10.77.0.1/24 dev t0
        link set t0 up
        route add blackhole 10.66.0.0/16
        -6 route add blackhole fd66::/64
        route add unreachable 10.67.0.0/16");
    lb.enter(|| async {
        for (ip, reason) in [
            ("10.99.0.1", "this host itself"),
            ("fd99::1", "this host itself"),
            ("10.77.0.9", "no Ethernet address"),
            ("10.66.0.1", "route"),
            ("fd66::1", "route"),
            ("10.67.0.1", "route"),
            ("203.0.113.1", "no route"),
            ("10.99.0.200", "has not told its hardware address on v0"),
        ] {
            Watch::new(&[ip]).none(ip, reason).await;
        }
    });
}

#[test]
fn removed_interface_leaves_none() {
    needs_root!("removed_interface_leaves_none");
    let (lb, _peer) = world();
    lb.enter(|| async {
        let mut watch = Watch::new(&["10.99.0.2", "fd99::2"]);
        let mut found = BTreeSet::new();
        watch
            .until(|update| {
                if let Update::NextHop {
                    address,
                    next_hop: Some(_),
                    ..
                } = update
                {
                    found.insert(address);
                }
                (found.len() == 2).then_some(())
            })
            .await;
        lb.ip("link del v0");
        let mut gone = BTreeSet::new();
        watch
            .until(|update| {
                if let Update::NextHop {
                    address,
                    next_hop: None,
                    ..
                } = update
                {
                    gone.insert(address);
                }
                (gone.len() == 2).then_some(())
            })
            .await;
    });
}

#[test]
fn neighbour_that_falls_silent_keeps_its_hardware_address() {
    needs_root!("neighbour_that_falls_silent_keeps_its_hardware_address");
    let (lb, peer) = world();
    lb.enter(|| async {
        let mut watch = Watch::new(&["10.99.0.2"]);
        watch.next_hop("10.99.0.2", |_| true).await;
        peer.ip("link set v1 arp off");
        lb.ip("neighbour del 10.99.0.2 dev v0");
        // The second of these comes after all that the neighbour's events brought.
        for own in ["192.0.2.9", "192.0.2.10"] {
            lb.ip(&format!("address add {own}/32 dev lo"));
            let own: IpAddr = own.parse().unwrap();
            watch
                .until(|update| match update {
                    Update::OwnAddresses(all) => all.contains(&own).then_some(()),
                    Update::Ports(_) => None,
                    Update::NextHop { .. } | Update::Forgotten(_) => panic!("changed: {update:?}"),
                })
                .await;
        }
    });
}

#[test]
fn lost_events_are_made_up_for() {
    needs_root!("lost_events_are_made_up_for");
    let (lb, peer) = world();
    lb.enter(|| async {
        let mut watch = Watch::new(&["10.99.0.2"]);
        watch.next_hop("10.99.0.2", |_| true).await;
        let entry = |n: u32| {
            format!(
                "neigh replace 10.99.{}.{} lladdr 02:00:00:00:01:00 dev v0",
                n / 200,
                n % 200 + 3
            )
        };
        let mut flood: Vec<_> = (0..900).map(entry).collect();
        flood.extend(
            (0..4)
                .flat_map(|_| (0..900).map(|n| entry(n).replace("01:00", "02:00")))
                .collect::<Vec<_>>(),
        );
        flood.push("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:99 dev v0".to_owned());
        // The runtime has this one thread: nobody reads the socket meanwhile, and it overflows.
        lb.ip_batch(&flood.join("\n"));
        watch
            .next_hop("10.99.0.2", |hop| {
                hop.destination_mac == [2, 0, 0, 0, 0, 0x99]
            })
            .await;
    });
    drop(peer);
}

#[test]
fn unwatched_addresses_are_not_reported_any_more_and_watched_again_are() {
    needs_root!("unwatched_addresses_are_not_reported_any_more_and_watched_again_are");
    let (lb, _peer) = world();
    lb.enter(|| async {
        let mut watch = Watch::new(&["10.99.0.2"]);
        watch.next_hop("10.99.0.2", |_| true).await;
        watch.set(&["fd99::2"]);
        let forgotten = watch
            .until(|update| match update {
                Update::Forgotten(addresses) => Some(addresses),
                _ => None,
            })
            .await;
        assert_eq!(forgotten, BTreeSet::from(["10.99.0.2".parse().unwrap()]));
        watch.next_hop("fd99::2", |_| true).await;
        lb.ip("link set v0 address 02:00:00:00:00:51");
        let mut seen = BTreeSet::new();
        watch
            .until(|update| match update {
                Update::NextHop {
                    address, next_hop, ..
                } => {
                    seen.insert(address);
                    next_hop.filter(|hop| hop.source_mac[5] == 0x51)
                }
                Update::OwnAddresses(_) | Update::Forgotten(_) | Update::Ports(_) => None,
            })
            .await;
        assert_eq!(seen, BTreeSet::from(["fd99::2".parse().unwrap()]));
        watch.set(&["10.99.0.2"]);
        watch.next_hop("10.99.0.2", |_| true).await;
    });
}

/// What the kernel has of neighbours, those in `lines` of `ip neigh`.
fn neighbours_of(lb: &Netns) -> Vec<String> {
    let mut ip = std::process::Command::new("ip");
    let listed = ip
        .args(["-n", lb.name(), "neigh", "show"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn a_neighbour_in_use_without_traffic_outlives_the_kernels_collection_of_idle_ones() {
    // More than the kernel leaves alone (gc_thresh1 is 128), all of them idle from the start.
    const IDLE: u8 = 200;
    needs_root!("a_neighbour_in_use_without_traffic_outlives_the_kernels_collection_of_idle_ones");
    let (lb, _peer) = world();
    lb.enter(|| async {
        for family in ["ipv4", "ipv6"] {
            // Stale after a second at most twice as long, collected after eight; the kernel looks every 15 s or so.
            for (setting, value) in [("base_reachable_time_ms", "1000"), ("gc_stale_time", "8")] {
                let path = format!("/proc/sys/net/{family}/neigh/v0/{setting}");
                std::fs::write(path, value).unwrap();
            }
        }
        let in_use = ["10.99.0.2", "fd99::2"];
        let mut watch = Watch::new(&in_use);
        watch.next_hops(&in_use, |_| true).await;
        let idle = |n: u8| [format!("10.99.0.{}", n + 20), format!("fd99::1:{n}")];
        let batch: String = (0..IDLE)
            .flat_map(idle)
            .map(|ip| format!("neigh add {ip} lladdr 02:00:00:00:01:00 nud stale dev v0\n"))
            .collect();
        lb.ip_batch(&batch);
        let collected = async {
            loop {
                let known = neighbours_of(&lb);
                for ip in in_use {
                    let is_it = |line: &&String| line.starts_with(&format!("{ip} "));
                    let kept = known.iter().find(is_it);
                    let kept = kept.unwrap_or_else(|| panic!("{ip} is gone: {known:#?}"));
                    assert!(kept.contains("02:00:00:00:00:02"), "{kept}");
                }
                if !known.iter().any(|line| line.contains("02:00:00:00:01:00")) {
                    return;
                }
                time::sleep(Duration::from_millis(100)).await;
            }
        };
        let collected = time::timeout(Duration::from_secs(90), collected).await;
        collected.expect("the kernel collects idle neighbours");
    });
}

#[test]
fn a_neighbour_without_traffic_that_gets_another_hardware_address_is_found_again() {
    needs_root!("a_neighbour_without_traffic_that_gets_another_hardware_address_is_found_again");
    let (lb, peer) = world();
    lb.enter(|| async {
        for family in ["ipv4", "ipv6"] {
            // Stale after a second at most twice as long, and then asked after at once.
            for (setting, value) in [
                ("base_reachable_time_ms", "1000"),
                ("delay_first_probe_time", "1"),
            ] {
                let path = format!("/proc/sys/net/{family}/neigh/v0/{setting}");
                std::fs::write(path, value).unwrap();
            }
        }
        let in_use = ["10.99.0.2", "fd99::2"];
        let mut watch = Watch::new(&in_use);
        watch
            .next_hops(&in_use, |hop| hop.destination_mac == PEER_MAC)
            .await;
        // Quietly: the peer says nothing of it.
        peer.ip("link set v1 address 02:00:00:00:00:77");
        watch
            .next_hops(&in_use, |hop| hop.destination_mac[5] == 0x77)
            .await;
    });
}
