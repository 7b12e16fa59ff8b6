//! What both executions are filled with: services of every mode, scheduler and shape, of whose backends one is
//! dead and one cannot be reached. Makes frames for nobody.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use lb_common::{
    tables::{Address, feature},
    vlan,
};
use lb_userspace::{
    agent::Core,
    config::Tunnel,
    dataplane::Dataplane,
    health::{Event, Target},
    model::{
        AccessList, Adaptive, AddressPool, Change, ClientAddress, FlowState, Health, Mode,
        MssClamp, Passive, Prefix, Protocol, Scheduler, Service, Signal, SynProxy, Unserved, Vlans,
    },
    neighbours::{Kind, Port, Update},
    plan::features,
    snapshot::Condition,
};
use serde_json::json;

use super::{
    INGRESS,
    frames::{CONFIG_ID, NONCE, OWN, POOL_PORTS, server_id},
    next_hop,
};

/// Where `gue` tunnels end.
pub const GUE_PORT: u16 = 6_080;

/// What frames come in by.
const LOOPBACK: &str = "lo";
const PORT: Port = Port {
    index: INGRESS,
    mac: [2, 0, 0, 0, 3, 9],
    running: true,
    mtu: 1_500,
    kind: Kind::Plain,
    deaf: false,
};
/// A VLAN device over it, one over a service provider's there, and a bond.
pub(super) const VLAN: u32 = 20;
pub(super) const OUTER_VLAN: u32 = 21;
pub(super) const BOTH_VLANS: u32 = 22;
pub(super) const BOND: u32 = 30;
/// What routes lead to: the packet path takes it for a VLAN device.
pub(super) const OUT: u32 = 9;

/// The interface, and those, of which the VLAN devices are other ones in truth ([`super::routes::lay`]).
fn ports() -> BTreeMap<String, Port> {
    let over = |lower, protocol, id| Kind::Vlan {
        lower,
        tag: vlan::tag(protocol, id),
    };
    let member = Kind::Member {
        bond: BOND,
        active: true,
    };
    let others = [
        (OUT, over(INGRESS, 0x8100, 300)),
        (VLAN, over(INGRESS, 0x8100, 100)),
        (OUTER_VLAN, over(INGRESS, 0x88a8, 7)),
        (BOTH_VLANS, over(OUTER_VLAN, 0x8100, 100)),
        (BOND, Kind::Bond),
        (31, member),
        (32, member),
    ];
    let others = others.map(|(index, kind)| {
        (
            format!("port{index}"),
            Port {
                index,
                kind,
                ..PORT
            },
        )
    });
    [(LOOPBACK.to_owned(), PORT)]
        .into_iter()
        .chain(others)
        .collect()
}

/// See above.
#[derive(Debug)]
pub struct Setting {
    /// Access lists.
    pub lists: Vec<AccessList>,
    /// Address pools.
    pub pools: Vec<AddressPool>,
    /// What is served.
    pub services: Vec<Service>,
    /// Who is dead.
    pub down: Target,
    /// A backend that nobody knows the way to.
    pub unreachable: IpAddr,
    /// Addresses worth sending to and from.
    pub endpoints: Vec<SocketAddr>,
    /// What the program is loaded for.
    pub features: u32,
}

impl Setting {
    /// The one that everything is compared in.
    ///
    /// # Errors
    /// A part of it is not valid.
    pub fn new() -> Result<Self> {
        let mut services = services()?;
        // Neighbours are told of some VIPs.
        for service in &mut services {
            let [.., last] = Address::from(service.id.vip.ip()).octets();
            service.announce = last % 2 == 1;
        }
        let dead: SocketAddr = "10.2.0.21:80".parse()?;
        let down = Target {
            service: "10.0.0.5:80/tcp".parse()?,
            address: dead,
        };
        let unreachable: IpAddr = "10.2.0.31".parse()?;
        let mut endpoints: Vec<SocketAddr> =
            services.iter().map(|service| service.id.vip).collect();
        // More often than others: of their packets, few carry an id that somebody has.
        let quic = services.iter().filter(|service| service.quic.is_some());
        endpoints.extend(quic.flat_map(|service| [service.id.vip; 4]));
        endpoints.extend(
            services
                .iter()
                .flat_map(|s| s.backends.iter().map(|b| b.address)),
        );
        // Ports of VIPs that no service has, or one that has every port, and that its backends answer from.
        for at in [
            "10.0.0.1:81",
            "[fd00::1]:81",
            "10.0.0.8:53",
            "[fd00::8]:53",
            "10.0.0.30:5060",
            "10.0.0.30:65535",
            "[fd00::30]:5060",
            "10.2.0.61:5060",
            "10.2.0.62:5061",
            "10.0.0.41:5060",
            // Within prefixes and ranges, and just beyond.
            "10.0.0.75:80",
            "10.0.0.79:5065",
            "10.0.0.70:5060",
            "10.0.0.70:6000",
            "10.0.0.80:80",
            "10.0.0.50:7003",
            "10.0.0.50:7004",
            "10.2.0.71:7002",
            "10.0.0.47:80",
            "[fd00::64:0:0:7]:443",
            "[fd00::65:0:0:7]:443",
        ] {
            endpoints.push(at.parse()?);
        }
        endpoints.extend(OWN.map(|address| SocketAddr::new(address, 80)));
        Ok(Self {
            lists: lists()?,
            pools: pools()?,
            services,
            down,
            unreachable,
            endpoints,
            features: feature::ALL,
        })
    }

    /// The same with those services alone that need nothing but these features, bits of [`feature`], for which the program is
    /// loaded. Frames go where they went.
    ///
    /// # Errors
    /// Never.
    pub fn for_features(features: u32) -> Result<Self> {
        let mut setting = Self::new()?;
        if features & feature::PASSIVE == 0 {
            for service in &mut setting.services {
                service.passive = Passive::default();
                service.adaptive = None;
            }
        }
        if features & feature::ANNOUNCE == 0 {
            for service in &mut setting.services {
                service.announce = false;
            }
        }
        let needs_more =
            |service: &Service| features::needed([service], Unserved::Pass) & !features != 0;
        setting.services.retain(|service| !needs_more(service));
        setting.features = features;
        Ok(setting)
    }

    /// An agent of it, over empty maps.
    ///
    /// # Errors
    /// The maps refuse.
    pub fn fill<D: Dataplane>(&self, dataplane: D) -> Result<Core<D>> {
        let tunnel = Tunnel {
            source_v4: Some(([10, 255, 0, 0].into(), 16)),
            source_v6: None,
            gue_port: GUE_PORT,
        };
        let mut core = Core::new("differential".to_owned(), tunnel, dataplane)?;
        core.offer_pools(self.pools.iter().cloned())?;
        core.network(Update::OwnAddresses(OWN.into()));
        core.attend([LOOPBACK.to_owned()]);
        core.set_vlans(if self.features & feature::VLAN == 0 {
            Vlans::Off
        } else {
            Vlans::On
        });
        core.network(Update::Ports(ports()));
        for address in self.services.iter().flat_map(|service| &service.backends) {
            let address = address.address.ip();
            if address != self.unreachable {
                core.network(next_hop(address));
            }
        }
        core.change(Change::ReplaceAll(
            self.lists.clone(),
            self.services.clone(),
        ))?;
        core.health(Event {
            changed: true,
            dead: true,
            ..Event::new(self.down, Condition::Down)
        });
        Ok(core)
    }
}

fn service(vip: &str, mode: Mode, backends: &[&str]) -> Result<Service> {
    let backends: Vec<_> = backends
        .iter()
        .map(|address| json!({ "address": address }))
        .collect();
    let mut service: Service = serde_json::from_value(json!({
        "id": vip, "mode": mode, "backends": backends
    }))?;
    service.health = Health::none();
    // Of some, nobody looks at what packets show, and of some nobody may.
    let may_not = match mode {
        Mode::Nat | Mode::FullNat => service.id.has_several_ports(),
        Mode::Ipip | Mode::Gue | Mode::L2 => false,
    };
    if service.id.protocol == Protocol::Tcp && !may_not && !vip.contains("::3]") {
        service.passive = Passive::ON;
    }
    // Where answers pass, handshakes are watched for their times alone.
    if vip == "10.0.0.1:80/tcp" {
        service.adaptive = Some(Adaptive::by([Signal::Handshake]));
    }
    Ok(service)
}

fn services() -> Result<Vec<Service>> {
    let v4 = ["10.2.0.11:80", "10.2.0.12:8080", "10.2.0.13:81"];
    let v6 = ["[fd00:2::11]:80", "[fd00:2::12]:8080", "[fd00:2::13]:81"];
    let grouped = |vip| {
        let pool = ["10.2.0.51:8080", "10.2.0.52:8080", "10.2.0.53:8080"];
        service(vip, Mode::Nat, &pool).map(|service| Service {
            group: Some("web".to_owned()),
            scheduler: Scheduler::RoundRobin,
            persistence: Duration::from_secs(3_600),
            ..service
        })
    };
    let persistent = |vip, mode, backends: &[&str]| {
        let persistence = Duration::from_secs(3_600);
        service(vip, mode, backends).map(|service| Service {
            persistence,
            ..service
        })
    };
    let clamping = |vip, mode, backends: &[&str], mss_clamp| {
        service(vip, mode, backends).map(|service| Service {
            mss_clamp,
            ..service
        })
    };
    Ok(vec![
        clamping("10.0.0.1:80/tcp", Mode::Nat, &v4, MssClamp::To(1_400))?,
        service("10.0.0.1:80/udp", Mode::Nat, &v4)?,
        clamping("[fd00::1]:80/tcp", Mode::Nat, &v6, MssClamp::Auto)?,
        service("[fd00::1]:80/udp", Mode::Nat, &v6)?,
        guarded(
            service("10.0.0.2:80/tcp", Mode::Ipip, &v4)?,
            "half",
            "none",
            "none",
        ),
        persistent("10.0.0.2:80/udp", Mode::Ipip, &v4)?,
        guarded(
            persistent("[fd00::2]:80/tcp", Mode::Ipip, &v6)?,
            "half",
            "50,burst=50",
            "5",
        ),
        recording(guarded(
            service("[fd00::2]:80/udp", Mode::Ipip, &v6)?,
            "most",
            "none",
            "3",
        )),
        guarded(
            service("10.0.0.3:80/tcp", Mode::Ipip, &v6)?,
            "",
            "40",
            "none",
        ),
        clamping("[fd00::3]:80/tcp", Mode::Ipip, &v4, MssClamp::Auto)?,
        Service {
            second_hop: true,
            ..clamping("10.0.0.7:80/tcp", Mode::Gue, &v4, MssClamp::Auto)?
        },
        service("10.0.0.7:80/udp", Mode::Gue, &v6)?,
        service("[fd00::7]:80/tcp", Mode::Gue, &v4)?,
        service("[fd00::7]:80/udp", Mode::Gue, &v6)?,
        service("10.0.0.8:80/tcp", Mode::L2, &v6)?,
        service("[fd00::8]:80/udp", Mode::L2, &v6)?,
        service("10.0.0.4:80/tcp", Mode::Ipip, &[])?,
        refusing("10.0.0.4:443/tcp", Unserved::Reset)?,
        refusing("10.0.0.4:443/udp", Unserved::Reset)?,
        refusing("[fd00::4]:443/tcp", Unserved::Reset)?,
        refusing("[fd00::4]:443/udp", Unserved::Unreachable)?,
        refusing("10.0.0.9:443/tcp", Unserved::Unreachable)?,
        refusing("10.0.0.9:443/udp", Unserved::Pass)?,
        service(
            "10.0.0.5:80/tcp",
            Mode::Ipip,
            &["10.2.0.21:80", "10.2.0.22:80"],
        )?,
        service("10.0.0.6:80/tcp", Mode::Ipip, &["10.2.0.31:80"])?,
        quic("10.0.0.27:80/udp", Mode::Nat, &[41, 42, 43])?,
        guarded(
            quic("10.0.0.28:80/udp", Mode::Ipip, &[41, 42])?,
            "most",
            "60",
            "4",
        ),
        quic("[fd00::27]:80/udp", Mode::Ipip, &[41, 44])?,
        service(
            "10.0.0.30:*/tcp",
            Mode::Nat,
            &["10.2.0.61:80", "10.2.0.62:80"],
        )?,
        service("10.0.0.30:80/tcp", Mode::Nat, &["10.2.0.62:80"])?,
        service("[fd00::30]:*/tcp", Mode::Ipip, &v6)?,
        recording(guarded(
            service("10.0.0.30:*/udp", Mode::Gue, &v4)?,
            "",
            "100",
            "2",
        )),
        translated(
            clamping("10.0.0.40:80/tcp", Mode::FullNat, &v4, MssClamp::Auto)?,
            true,
        ),
        translated(
            guarded(
                service("10.0.0.40:80/udp", Mode::FullNat, &v4)?,
                "half",
                "none",
                "20",
            ),
            false,
        ),
        translated(service("[fd00::40]:80/tcp", Mode::FullNat, &v6)?, true),
        translated(persistent("[fd00::40]:80/udp", Mode::FullNat, &v6)?, false),
        translated(service("10.0.0.41:*/tcp", Mode::FullNat, &v4)?, false),
        service("10.0.0.64/28:80/tcp", Mode::Ipip, &v4)?,
        recording(guarded(
            service("10.0.0.64/28:5060-5069/udp", Mode::L2, &v6)?,
            "half",
            "100",
            "4",
        )),
        service("10.0.0.70:*/tcp", Mode::Gue, &v4)?,
        persistent("10.0.0.70:5000-5999/tcp", Mode::L2, &v4)?,
        service("10.0.0.50:7000-7003/tcp", Mode::Nat, &["10.2.0.71:80"])?,
        Service {
            second_hop: true,
            ..service("[fd00::64:0:0:0/80]:*/tcp", Mode::Gue, &v6)?
        },
        service("10.0.0.2:80/sctp", Mode::Ipip, &v4)?,
        recording(service("[fd00::2]:80/sctp", Mode::Ipip, &v6)?),
        guarded(
            service("10.0.0.7:80/sctp", Mode::Gue, &v6)?,
            "half",
            "none",
            "4",
        ),
        service("[fd00::7]:*/sctp", Mode::L2, &v6)?,
        Service {
            no_backend: Unserved::Reset,
            ..service("10.0.0.64/28:80/sctp", Mode::Ipip, &[])?
        },
        translated(service("10.0.0.44/30:80/tcp", Mode::FullNat, &v4)?, true),
        Service {
            syn_proxy: SynProxy::Always,
            ..translated(service("10.0.0.48:80/tcp", Mode::FullNat, &v4)?, true)
        },
        Service {
            syn_proxy: SynProxy::Above(3),
            ..translated(service("[fd00::48]:80/tcp", Mode::FullNat, &v6)?, false)
        },
        grouped("10.0.0.20:80/tcp")?,
        grouped("10.0.0.20:443/tcp")?,
    ])
}

/// The service, with few ports to its flows, so that they run out.
fn translated(service: Service, tells: bool) -> Service {
    Service {
        address_pool: Some("small".to_owned()),
        client_address: if tells {
            ClientAddress::TcpOption
        } else {
            ClientAddress::None
        },
        no_backend: Unserved::Reset,
        ..service
    }
}

fn pools() -> Result<Vec<AddressPool>> {
    let addresses = ["10.9.0.1", "10.9.0.2", "fd00:9::1", "fd00:9::2"];
    let addresses = addresses.map(|address| address.parse().expect("a literal address"));
    Ok(vec![AddressPool::new("small", addresses, POOL_PORTS)?])
}

/// An access list, by what it allows and what it denies.
pub(super) fn list(name: &str, allow: &[&str], deny: &[&str]) -> Result<AccessList> {
    let parsed = |texts: &[&str]| -> Result<Vec<Prefix>> {
        let parsed = texts.iter().map(|text| text.parse());
        Ok(parsed.collect::<Result<_, _>>()?)
    };
    Ok(AccessList::new(name, parsed(allow)?, parsed(deny)?)?)
}

/// Strangers are of 192.0.0.0/8 and of 2001:db8::/64, whose last six bytes are theirs but for every other one.
fn lists() -> Result<Vec<AccessList>> {
    let half = ["192.0.0.0/9", "192.200.0.0/16", "2001:db8::/89"];
    let not = ["192.16.0.0/12", "2001:db8::10:0:0/92"];
    Ok(vec![
        list("half", &half, &not)?,
        list("most", &[], &["192.128.0.0/11", "2001:db8::80:0:0/90"])?,
    ])
}

/// The service with an access list, where one is named, and limits of its flows and of each source's.
fn guarded(service: Service, list: &str, flows: &str, sources: &str) -> Service {
    let limit = |text: &str| text.parse().expect("a literal limit");
    Service {
        access_list: (!list.is_empty()).then(|| list.to_owned()),
        flow_limit: limit(flows),
        source_limit: limit(sources),
        source_prefix_v4: Some(12),
        source_prefix_v6: Some(100),
        ..service
    }
}

/// The service, of which every flow is recorded.
fn recording(service: Service) -> Service {
    Service {
        flow_state: FlowState::Always,
        ..service
    }
}

/// A service without a backend.
fn refusing(vip: &str, no_backend: Unserved) -> Result<Service> {
    Ok(Service {
        no_backend,
        ..service(vip, Mode::Ipip, &[])?
    })
}

/// A backend of QUIC services, of which each has an id.
pub(super) fn named(n: u8) -> serde_json::Value {
    let [first, second] = server_id(n % 40);
    json!({ "address": format!("10.2.0.{n}:80"), "server_id": format!("{first:02x}{second:02x}") })
}

fn quic(vip: &str, mode: Mode, backends: &[u8]) -> Result<Service> {
    let backends: Vec<_> = backends.iter().map(|&n| named(n)).collect();
    let layout = json!({
        "config_id": CONFIG_ID, "server_id_length": server_id(0).len(), "nonce_length": NONCE
    });
    let mut service: Service = serde_json::from_value(json!({
        "id": vip, "mode": mode, "quic": layout, "backends": backends
    }))?;
    service.health = Health::none();
    Ok(service)
}
