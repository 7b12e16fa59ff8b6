//! What happens to a balancer while frames are compared. Does nothing itself.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum as _;
use lb_common::tables::Tick;
use lb_userspace::{
    agent::Core,
    dataplane::Dataplane,
    health::{Event, Target},
    model::{
        AccessEdit, Admin, Backend, Change, FlowLimit, FlowState, MssClamp, Scheduler, ServiceId,
        Settings, SourceRoutes, Unserved,
    },
    snapshot::Condition,
};
use serde_json::json;

use super::{
    frames::Random,
    setting::{list, named},
};

/// What happens to a balancer.
#[derive(Debug)]
pub enum Disturbance {
    /// Somebody asks for it. Some are refused, which is no matter here.
    Change(Box<Change>),
    /// A check says so, and whether it is dead.
    Health(Target, Condition, bool),
    /// What packets to unknown ports get.
    UnknownPorts(Unserved),
    /// The flow tables are swept, and slots go on as if so much later.
    Sweep(Tick),
}

impl Disturbance {
    /// Brings it about, but for a sweep: how much later that is to be.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn bring_about<D: Dataplane>(self, core: &mut Core<D>) -> Result<Option<Tick>> {
        match self {
            Self::Change(change) => {
                let _ = core.change(*change);
                return Ok(None);
            }
            Self::Health(target, condition, dead) => {
                core.health(Event {
                    changed: true,
                    dead,
                    ..Event::new(target, condition)
                });
            }
            Self::UnknownPorts(unserved) => core.refuse_unknown_ports(unserved),
            Self::Sweep(later) => return Ok(Some(later)),
        }
        core.enforce()?;
        Ok(None)
    }
}

/// One that moves slots, or lets them settle.
///
/// # Errors
/// A service or backend in here is not valid.
pub fn disturbance(random: &mut Random) -> Result<Disturbance> {
    let vips = [
        "10.0.0.1:80/tcp",
        "10.0.0.1:80/udp",
        "10.0.0.2:80/tcp",
        "10.0.0.2:80/udp",
        "10.0.0.20:443/tcp",
        "10.0.0.27:80/udp",
        "10.0.0.28:80/udp",
        "10.0.0.30:*/udp",
        "10.0.0.40:80/tcp",
        "10.0.0.40:80/udp",
        "10.0.0.7:80/tcp",
        "10.0.0.2:80/sctp",
        "10.0.0.64/28:80/tcp",
        "10.0.0.41:*/tcp",
    ];
    let number = random.below(vips.len() as u64);
    let id: ServiceId = vips[number].parse()?;
    let plain = |addresses: [&str; 4]| addresses.map(|address| json!({ "address": address }));
    let backends = match number {
        0..4 | 7..14 => plain([
            "10.2.0.11:80",
            "10.2.0.12:8080",
            "10.2.0.13:81",
            "10.2.0.14:80",
        ]),
        4 => plain([
            "10.2.0.51:8080",
            "10.2.0.52:8080",
            "10.2.0.53:8080",
            "10.2.0.54:8080",
        ]),
        _ => [41, 42, 43, 44].map(named),
    };
    let backend: Backend = serde_json::from_value(backends[random.below(4)].clone())?;
    let address = backend.address;
    let target = Target {
        service: id,
        address,
    };
    let settings = |settings| Change::EditService(id, settings);
    let edit = |weight, admin, max_connections| Change::EditBackend {
        id,
        address,
        weight,
        admin,
        max_connections,
        rated: Default::default(),
        tier: None,
    };
    let change = match random.below(22) {
        0 => edit(Some(1 + random.below(5) as u16), None, None),
        1 => edit(None, Some(Admin::Draining), None),
        2 | 3 => edit(None, Some(Admin::Active), Some(None)),
        4 => edit(None, None, Some(Some(random.below(20) as u32 + 1))),
        5 => Change::RemoveBackend(id, address),
        6 | 7 => Change::AddBackend(id, backend),
        8 => settings(Settings {
            scheduler: Some(random.pick(Scheduler::value_variants())),
            ..Settings::default()
        }),
        9 => settings(Settings {
            ring_size: Some([251, 1_021][random.below(2)]),
            flow_state: Some([FlowState::Auto, FlowState::Always][random.below(2)]),
            ..Settings::default()
        }),
        10 => settings(Settings {
            // Longer than a run: the two sides' clocks may lie a tick apart.
            persistence: Some(Duration::from_secs([0, 3_600, 7_200][random.below(3)])),
            persistence_prefix: [None, Some(8), Some(32)][random.below(3)],
            ..Settings::default()
        }),
        11 => {
            let (down, dead) = (random.once_in(2), random.once_in(2));
            let condition = if down { Condition::Down } else { Condition::Up };
            return Ok(Disturbance::Health(target, condition, dead));
        }
        12 => settings(Settings {
            mss_clamp: Some(MSS_CLAMPS[random.below(3)]),
            ..Settings::default()
        }),
        14 => settings(Settings {
            access_list: Some(LISTS[random.below(3)].map(str::to_owned)),
            ..Settings::default()
        }),
        15 => settings(Settings {
            flow_limit: Some(limit(random, 20)?),
            source_limit: Some(limit(random, 12)?),
            ..Settings::default()
        }),
        16 => Change::EditAccessList("most".to_owned(), edited(random)?),
        17 => {
            let denied = format!("192.{}.0.0/14", 4 * random.below(64));
            Change::SetAccessList(list("half", &["192.0.0.0/9", "::/0"], &[&denied])?)
        }
        18 => settings(Settings {
            second_hop: Some(random.once_in(2)),
            ..Settings::default()
        }),
        19 => settings(Settings {
            source_routes: Some(source_routes(random)?),
            ..Settings::default()
        }),
        20 => settings(Settings {
            subsets: [(
                address,
                SUBSETS[random.below(4)].map(str::to_owned).to_vec(),
            )]
            .into(),
            ..Settings::default()
        }),
        13 => return Ok(Disturbance::UnknownPorts(UNSERVED[random.below(4)])),
        // Past the moving time of TCP and UDP.
        _ => return Ok(Disturbance::Sweep(1 << 21)),
    };
    Ok(Disturbance::Change(Box::new(change)))
}

/// A limit of this burst at most, which lasts for good, or none.
fn limit(random: &mut Random, burst: u64) -> Result<FlowLimit> {
    if random.once_in(3) {
        return Ok(FlowLimit::None);
    }
    let burst = 1 + random.below(burst) as u64;
    FlowLimit::to(1, Some(burst)).map_err(anyhow::Error::msg)
}

/// One prefix or two that come, which is done in place or by another list.
fn edited(random: &mut Random) -> Result<AccessEdit> {
    let mut edit = AccessEdit::default();
    for _ in 0..1 + random.below(2) {
        let prefix = format!("192.{}.0.0/13", 8 * random.below(32)).parse()?;
        if random.once_in(2) && !edit.deny.contains(&prefix) {
            edit.allow.push(prefix);
        } else if !edit.allow.contains(&prefix) {
            edit.deny.push(prefix);
        }
    }
    Ok(edit)
}

/// Up to three routes, of some or most clients.
fn source_routes(random: &mut Random) -> Result<SourceRoutes> {
    let mut routes = Vec::new();
    for _ in 0..random.below(4) {
        let (length, octet) = (9 + random.below(8), random.below(256));
        let prefix = match random.below(4) {
            0 => PREFIXES[random.below(PREFIXES.len() as u64)].to_owned(),
            _ => format!(
                "192.{}.0.0/{length}",
                octet >> (16 - length) << (16 - length)
            ),
        };
        let [subset, _] = SUBSETS[random.below(4)];
        routes.push((prefix.parse()?, subset.to_owned()));
    }
    Ok(routes.into_iter().collect())
}

/// Those of all clients of a family, and of some.
const PREFIXES: [&str; 4] = ["0.0.0.0/0", "::/0", "2001:db8::/32", "2001:db8::40:0:0/90"];
/// Subsets, and pairs of them that a backend may be of.
const SUBSETS: [[&str; 2]; 4] = [
    ["default", "east"],
    ["east", "west"],
    ["west", "default"],
    ["west", "south"],
];

const LISTS: [Option<&str>; 3] = [None, Some("half"), Some("most")];

const MSS_CLAMPS: [MssClamp; 3] = [MssClamp::Off, MssClamp::Auto, MssClamp::To(536)];

const UNSERVED: [Unserved; 4] = [
    Unserved::Drop,
    Unserved::Reset,
    Unserved::Unreachable,
    Unserved::Pass,
];
