//! The core test: whatever the frame, host and kernel make the same of it.

use std::{
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::verdict::{Answer, DropReason, Piece};
use lb_tests::{
    differential::{
        Bench, Way,
        frames::{CONFIG_ID, Generator, NONCE, OWN, Random, server_id},
        routes, unhex,
    },
    netns::Namespace,
    skip::root_or_skip,
};
use lb_userspace::{
    health::Target,
    model::{
        AccessEdit, AccessList, Admin, Backend, Change, FlowLimit, FlowState, Health, Mode,
        MssClamp, Prefix, Scheduler, Service, ServiceId, Settings, Unserved,
    },
    snapshot::Condition,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

/// How many frames to compare; the default fits a test run.
const PACKETS: &str = "LB_DIFFERENTIAL_PACKETS";
const SEED: &str = "LB_DIFFERENTIAL_SEED";

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn service(vip: &str, mode: Mode, backends: &[&str]) -> Result<Service> {
    let backends: Vec<_> = backends
        .iter()
        .map(|address| serde_json::json!({ "address": address }))
        .collect();
    let mut service: Service = serde_json::from_value(serde_json::json!({
        "id": vip, "mode": mode, "backends": backends
    }))?;
    service.health = Health::none();
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
        clamping("10.0.0.7:80/tcp", Mode::Gue, &v4, MssClamp::Auto)?,
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
        grouped("10.0.0.20:80/tcp")?,
        grouped("10.0.0.20:443/tcp")?,
    ])
}

/// An access list, by what it allows and what it denies.
fn list(name: &str, allow: &[&str], deny: &[&str]) -> Result<AccessList> {
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
fn named(n: u8) -> serde_json::Value {
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

fn run() -> Result<()> {
    let services = services()?;
    let dead: SocketAddr = "10.2.0.21:80".parse()?;
    let down = Target {
        service: "10.0.0.5:80/tcp".parse()?,
        address: dead,
    };
    let unreachable: IpAddr = "10.2.0.31".parse()?;
    let mut endpoints: Vec<SocketAddr> = services.iter().map(|service| service.id.vip).collect();
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
    ] {
        endpoints.push(at.parse()?);
    }
    endpoints.extend(OWN.map(|address| SocketAddr::new(address, 80)));
    // Turns are taken per CPU, on the host as on one.
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let mut bench = Bench::new(lists()?, services, &[down], &[unreachable])?;
    bench.refuse_unknown_ports(Unserved::Unreachable)?;
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions/frames.hex");
    let kept = fs::read_to_string(&kept).with_context(|| kept.display().to_string())?;
    for line in kept.lines().filter(|line| !line.starts_with('#')) {
        bench.compare(&unhex(line)?)?;
    }
    let (packets, seed) = (number(PACKETS, 100_000), number(SEED, 1));
    let mut generator = Generator {
        random: Random(seed),
        endpoints,
        open: Vec::new(),
    };
    #[expect(clippy::disallowed_methods, reason = "only printed")]
    let start = Instant::now();
    let mut actions = [0u64; 4];
    let mut held = Vec::new();
    let mut changes = Random(seed ^ 0x5eed);
    for done in 0..packets {
        if done % CHANGE_EVERY == CHANGE_EVERY - 1 {
            disturb(&mut bench, &mut changes)
                .with_context(|| format!("before frame {done} of seed {seed}"))?;
        }
        let frame = generator.frame();
        let action = bench.compare(&frame).with_context(|| {
            format!("frame {done} of seed {seed}; keep it in tests/regressions/frames.hex")
        })?;
        actions[(action - 1) as usize] += 1;
        held.extend(bench.take_held()?);
        // Sooner and later than the first fragment.
        while held.len() > HELD {
            let frame = held.remove(changes.below(held.len() as u64)).frame;
            bench
                .compare_by(&frame, Way::Held)
                .with_context(|| format!("held, after frame {done} of seed {seed}"))?;
        }
    }
    let recorded = bench.compare_flows()?;
    let counted = bench.compare_counters()?;
    println!(
        "{packets} frames of seed {seed}: 0 differences in {:?}; [drop, pass, transmit, redirect] = {actions:?}; {:?}; {:?} answered; {:?} in fragments; {recorded} flows recorded at the end; {:?}",
        start.elapsed(),
        counted.drops,
        counted.answers,
        counted.pieces,
        counted.flows
    );
    // A generator that no longer reaches a part of the path proves nothing about it.
    assert!(actions.iter().all(|&seen| seen > 0), "{actions:?}");
    let inconsistent = DropReason::Inconsistent as u32;
    assert!(
        !counted.drops.contains_key(&inconsistent),
        "{:?}",
        counted.drops
    );
    let named: u64 = counted.flows.values().map(|flows| flows.named).sum();
    assert!(named > 0, "no connection id has named a server");
    for reason in REACHED {
        assert!(
            counted.drops.contains_key(&(reason as u32)),
            "no {reason:?} in {packets} frames"
        );
    }
    for &piece in Piece::ALL {
        assert!(
            counted.pieces.contains_key(&(piece as u32)),
            "no {piece:?} in {packets} frames"
        );
    }
    for answer in [
        Answer::Echo,
        Answer::Reset,
        Answer::Unreachable,
        Answer::Withheld,
        Answer::TooBig,
    ] {
        assert!(
            counted.answers.contains_key(&(answer as u32)),
            "no {answer:?} in {packets} frames"
        );
    }
    Ok(())
}

/// Fragments that are held at a time.
const HELD: usize = 16;
/// Frames between two changes of rings, schedulers and health.
const CHANGE_EVERY: u64 = 250;

/// One change that moves slots, or lets them settle. Some are refused, which is no matter here.
fn disturb(bench: &mut Bench, random: &mut Random) -> Result<()> {
    let vips = [
        "10.0.0.1:80/tcp",
        "10.0.0.1:80/udp",
        "10.0.0.2:80/tcp",
        "10.0.0.2:80/udp",
        "10.0.0.20:443/tcp",
        "10.0.0.27:80/udp",
        "10.0.0.28:80/udp",
        "10.0.0.30:*/udp",
    ];
    let number = random.below(vips.len() as u64);
    let id: ServiceId = vips[number].parse()?;
    let plain = |addresses: [&str; 4]| addresses.map(|address| json!({ "address": address }));
    let backends = match number {
        0..4 | 7 => plain([
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
        tier: None,
    };
    bench.check_rings()?;
    let change = match random.below(19) {
        0 => edit(Some(1 + random.below(5) as u16), None, None),
        1 => edit(None, Some(Admin::Draining), None),
        2 | 3 => edit(None, Some(Admin::Active), Some(None)),
        4 => edit(None, None, Some(Some(random.below(20) as u32 + 1))),
        5 => Change::RemoveBackend(id, address),
        6 | 7 => Change::AddBackend(id, backend),
        8 => settings(Settings {
            scheduler: Some(SCHEDULERS[random.below(SCHEDULERS.len() as u64)]),
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
            return bench.health(target, condition, dead);
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
        13 => return bench.refuse_unknown_ports(UNSERVED[random.below(4)]),
        // Past the moving time of TCP and UDP.
        _ => return bench.sweep(1 << 21),
    };
    let _ = bench.change(change);
    Ok(())
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

const LISTS: [Option<&str>; 3] = [None, Some("half"), Some("most")];

const MSS_CLAMPS: [MssClamp; 3] = [MssClamp::Off, MssClamp::Auto, MssClamp::To(536)];

const UNSERVED: [Unserved; 4] = [
    Unserved::Drop,
    Unserved::Reset,
    Unserved::Unreachable,
    Unserved::Pass,
];

const SCHEDULERS: [Scheduler; 7] = [
    Scheduler::Maglev,
    Scheduler::SourceHash,
    Scheduler::RoundRobin,
    Scheduler::WeightedRoundRobin,
    Scheduler::LeastConnections,
    Scheduler::WeightedLeastConnections,
    Scheduler::PowerOfTwoChoices,
];

/// What frames of this size can be dropped for; the others take giants, or a defect.
const REACHED: [DropReason; 15] = [
    DropReason::NoBackend,
    DropReason::Truncated,
    DropReason::BadHeader,
    DropReason::Fragment,
    DropReason::ExtensionHeaders,
    DropReason::TtlExpired,
    DropReason::UnknownPort,
    DropReason::PacketTooBig,
    DropReason::FragmentTiny,
    DropReason::FragmentOverlap,
    DropReason::FragmentMalformed,
    DropReason::FragmentBeforeFirst,
    DropReason::AccessDenied,
    DropReason::SourceLimit,
    DropReason::ServiceLimit,
];

#[test]
fn host_and_kernel_make_the_same_of_every_frame() -> Result<()> {
    if !root_or_skip("host_and_kernel_make_the_same_of_every_frame") {
        return Ok(());
    }
    let namespace = Namespace::unique("differential")?;
    routes::lay(&namespace)?;
    namespace.run(run)
}
