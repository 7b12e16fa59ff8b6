//! `cargo xtask bench packet`: what the loaded program costs a packet, by `BPF_PROG_TEST_RUN`.
//!
//! Every figure is net of the same harness around a no-op, measured in turn with it. What the
//! program makes of a frame, and what it counts, is verified before anything is timed.

use std::{env, fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use clap::{Parser, ValueEnum};
use lb_userspace::{
    agent::Core,
    config::Tunnel,
    dataplane::{
        Capacity, Dataplane as _,
        bpf::{LoadOptions, Maps, Program, draw_hash_key},
    },
    model::{Change, Probe, Service},
    neighbours::{NextHop, Update},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

/// The interface that a test run's frames come in by.
const INGRESS: u32 = 1;
const BACKENDS: u8 = 10;

#[derive(Parser)]
struct Cli {
    /// A table for people, or JSON for machines
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    mode: &'static str,
    vip: &'static str,
    v6_backends: bool,
    flags: u8,
    flows: u32,
    /// The XDP action that it must end in.
    action: u32,
}

#[derive(Serialize)]
struct Figure {
    scenario: &'static str,
    mode: &'static str,
    flows: serde_json::Value,
    slots: &'static str,
    ns: Spread,
    noop_ns: f64,
}

#[derive(Serialize, Clone, Copy)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    let families = [
        ("tcp-v4", "ipip", "10.0.0.2:80/tcp", false),
        ("udp-v4", "ipip", "10.0.0.2:80/udp", false),
        ("tcp-v6", "ipip", "[fd00::2]:80/tcp", true),
        ("udp-v6", "ipip", "[fd00::2]:80/udp", true),
        ("tcp-v4v6", "ipip", "10.0.0.3:80/tcp", true),
        ("tcp-v4", "nat", "10.0.0.1:80/tcp", false),
        ("tcp-v6", "nat", "[fd00::1]:80/tcp", true),
    ];
    for (name, mode, vip, v6_backends) in families {
        for flows in [1, 1_000, 100_000, 1_000_000, 0] {
            let flags = ACK;
            all.push(Scenario {
                name,
                mode,
                vip,
                v6_backends,
                flags,
                flows,
                action: XDP_TX,
            });
        }
    }
    let tcp = Scenario { flows: 0, ..all[0] };
    all.push(Scenario {
        name: "syn-v4",
        flags: SYN,
        ..tcp
    });
    all.push(Scenario {
        name: "rst-v4",
        flags: RST,
        ..tcp
    });
    let pass = Scenario {
        mode: "none",
        flows: 1,
        action: XDP_PASS,
        ..tcp
    };
    all.push(Scenario {
        name: "pass-v4-no-vip",
        vip: "10.9.9.9:80/tcp",
        ..pass
    });
    all.push(Scenario {
        name: "pass-v6-no-vip",
        vip: "[fd00::9]:80/tcp",
        ..pass
    });
    all.push(Scenario {
        name: "pass-v4-icmp",
        vip: "10.0.0.2:0/icmp",
        ..pass
    });
    all.push(Scenario {
        name: "pass-non-ip",
        vip: "10.0.0.2:0/arp",
        ..pass
    });
    all
}

/// A frame of 64 (IPv4) or 80 (IPv6) bytes to the scenario's VIP.
fn frame(scenario: &Scenario) -> Result<Vec<u8>> {
    let (vip, protocol) = scenario
        .vip
        .split_once('/')
        .context("a VIP without protocol")?;
    let vip: SocketAddr = vip.parse()?;
    let number = match protocol {
        "tcp" => 6,
        "udp" => 17,
        _ => 1,
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match vip.ip() {
        std::net::IpAddr::V4(ip) => {
            let ether_type: [u8; 2] = if protocol == "arp" { [8, 6] } else { [8, 0] };
            frame.extend(ether_type);
            frame.extend([
                0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, number, 0, 0, 100, 0, 0, 1,
            ]);
            frame.extend(ip.octets());
        }
        std::net::IpAddr::V6(ip) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, number, 64]);
            frame.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend(ip.octets());
        }
    }
    frame.extend(1_024u16.to_be_bytes());
    frame.extend(vip.port().to_be_bytes());
    if number == 17 {
        frame.extend([0, 26, 0x12, 0x34]);
    } else {
        frame.extend([
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            1,
            0x50,
            scenario.flags,
            1,
            0,
            0x12,
            0x34,
        ]);
    }
    frame.resize(if vip.is_ipv4() { 64 } else { 80 }, 0);
    Ok(frame)
}

fn services() -> Result<Vec<Service>> {
    let pool = |v6: bool, port: u16| -> Vec<_> {
        let address = |n: u8| {
            if v6 {
                format!("[fd00:2::{n}]:{port}")
            } else {
                format!("10.2.0.{n}:{port}")
            }
        };
        (1..=BACKENDS)
            .map(|n| serde_json::json!({ "address": address(n) }))
            .collect()
    };
    let mut services = Vec::new();
    let mut known: Vec<&str> = Vec::new();
    for scenario in scenarios()
        .iter()
        .filter(|scenario| scenario.action == XDP_TX)
    {
        if known.contains(&scenario.vip) {
            continue;
        }
        known.push(scenario.vip);
        let mut service: Service = serde_json::from_value(serde_json::json!({
            "id": scenario.vip, "mode": scenario.mode, "ring_size": 65_537,
            "backends": pool(scenario.v6_backends, 80),
        }))?;
        service.health.probe = Probe::None;
        services.push(service);
    }
    Ok(services)
}

/// The harness and the product's program, loaded.
struct Rig {
    harness: Ebpf,
    noop: ProgramFd,
    product: ProgramFd,
    core: Core<Maps>,
    _program: Program,
}

impl Rig {
    fn new() -> Result<Self> {
        let options = LoadOptions {
            pins: None,
            capacity: Capacity {
                services: 64,
                backends: 1_024,
                members: 4_096,
                slots: 1 << 21,
                flows: 1 << 21,
                half_open: 1 << 16,
            },
            log_level: 0,
        };
        let (mut program, mut maps) = Program::load(&options)?;
        maps.initialise(draw_hash_key()?)?;
        let mut core = Core::new("bench".to_owned(), Tunnel::default(), maps)?;
        let services = services()?;
        for backend in services.iter().flat_map(|service| &service.backends) {
            let next_hop = NextHop {
                interface: INGRESS,
                source_mac: [2, 0, 0, 0, 1, 1],
                destination_mac: [2, 0, 0, 0, 2, 2],
                source_address: if backend.address.is_ipv4() {
                    [10, 2, 0, 254].into()
                } else {
                    "fd00:2::fe".parse()?
                },
                mtu: 1_500,
            };
            let address = backend.address.ip();
            core.network(Update::NextHop {
                address,
                next_hop: Some(next_hop),
                reason: None,
            });
        }
        core.change(Change::Replace(services))?;
        let product = program.xdp()?.fd()?.try_clone()?;
        let object = fs::read(object()?)?;
        let mut harness = EbpfLoader::new().load(&object)?;
        for name in ["noop", "restore"] {
            let program: &mut Xdp = harness
                .program_mut(name)
                .context("a program of bench.o")?
                .try_into()?;
            program.load()?;
        }
        let noop: &mut Xdp = harness.program_mut("noop").context("noop")?.try_into()?;
        let noop = noop.fd()?.try_clone()?;
        Ok(Self {
            harness,
            noop,
            product,
            core,
            _program: program,
        })
    }

    fn set_frame(&mut self, frame: &[u8], flows: u32) -> Result<()> {
        let mut template = [0u8; 88];
        template[..4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        template[4..8].copy_from_slice(&flows.to_ne_bytes());
        template[8..8 + frame.len()].copy_from_slice(frame);
        let map = self.harness.map_mut("TEMPLATE").context("TEMPLATE")?;
        Array::<_, [u8; 88]>::try_from(map)?.set(0, template, 0)?;
        Ok(())
    }

    /// Runs the harness around one of the two; action, last frame, ns a packet.
    fn run(&mut self, product: bool, frame: &[u8], repeat: u32) -> Result<(u32, Vec<u8>, f64)> {
        let target = if product { &self.product } else { &self.noop };
        let map = self.harness.map_mut("TARGET").context("TARGET")?;
        ProgramArray::try_from(map)?.set(0, target, 0)?;
        let mut out = vec![0; 256];
        let restore: &mut Xdp = self
            .harness
            .program_mut("restore")
            .context("restore")?
            .try_into()?;
        let result = restore.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        // The kernel divides by the repetitions itself, and rounds to whole nanoseconds.
        Ok((result.return_value, out, result.duration.as_nanos() as f64))
    }

    fn packets(&self) -> u64 {
        let maps = self.core.dataplane();
        let count = |index| maps.service_counters(index).unwrap_or_default().packets;
        (0..64).map(count).sum()
    }
}

fn object() -> Result<std::path::PathBuf> {
    let executable = env::current_exe()?;
    let found = executable
        .ancestors()
        .map(|folder| folder.join("bpf-objects/bench.o"))
        .find(|path| path.exists());
    found.context("bpf-objects/bench.o is not built: run `cargo xtask build`")
}

fn verify(rig: &mut Rig, scenario: &Scenario, frame: &[u8]) -> Result<()> {
    let before = rig.packets();
    let (action, out, _) = rig.run(true, frame, 1)?;
    ensure!(
        action == scenario.action,
        "{}: XDP action {action}, not {}",
        scenario.name,
        scenario.action
    );
    let counted = rig.packets() - before;
    ensure!(
        counted == u64::from(action == XDP_TX),
        "{}: {counted} packets counted",
        scenario.name
    );
    let overhead = match (scenario.mode, scenario.v6_backends) {
        ("ipip", false) => 20,
        ("ipip", true) => 40,
        _ => 0,
    };
    ensure!(
        out.len() == frame.len() + overhead,
        "{}: {} bytes came out",
        scenario.name,
        out.len()
    );
    if overhead > 0 {
        ensure!(
            out[..6] == [2, 0, 0, 0, 2, 2],
            "{}: not to the next hop",
            scenario.name
        );
        // The harness walks over source address and port; all else of the inner packet stays.
        let inner = &out[14 + overhead..];
        let varies = if frame.len() == 64 { 12..16 } else { 20..24 };
        let same = |at: &usize| inner[*at] == frame[14 + at];
        let ports = if frame.len() == 64 { 20..22 } else { 40..42 };
        let all = (0..inner.len()).filter(|at| !varies.contains(at) && !ports.contains(at));
        ensure!(
            all.clone().all(|at| same(&at)),
            "{}: the inner packet was changed",
            scenario.name
        );
    }
    Ok(())
}

fn measure(rig: &mut Rig, scenario: &Scenario, quick: bool) -> Result<Figure> {
    let (rounds, repeat) = if quick { (3, 200_000) } else { (9, 2_000_000) };
    let frame = frame(scenario)?;
    rig.set_frame(&frame, scenario.flows)?;
    verify(rig, scenario, &frame)?;
    let (mut nets, mut noops) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let noop = rig.run(false, &frame, repeat)?.2;
        nets.push(rig.run(true, &frame, repeat)?.2 - noop);
        noops.push(noop);
    }
    let flows = match scenario.flows {
        0 => "unbounded".into(),
        flows => flows.into(),
    };
    let noop_ns = spread(noops).median;
    let (scenario, mode) = (scenario.name, scenario.mode);
    Ok(Figure {
        scenario,
        mode,
        flows,
        slots: "steady",
        ns: spread(nets),
        noop_ns,
    })
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    Spread {
        min: values[0],
        median: values[values.len() / 2],
        max: values[values.len() - 1],
    }
}

fn show(figures: &[Figure]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "SCENARIO",
        "MODE",
        "FLOWS",
        "SLOTS",
        "NS MEDIAN",
        "MIN",
        "MAX",
        "NO-OP",
    ]);
    for Figure {
        scenario,
        mode,
        flows,
        slots,
        ns,
        noop_ns,
    } in figures
    {
        let flows = flows.to_string();
        let number = |value: f64| format!("{value:.0}");
        let row = [
            (*scenario).to_owned(),
            (*mode).to_owned(),
            flows.trim_matches('"').to_owned(),
            (*slots).to_owned(),
            number(ns.median),
            number(ns.min),
            number(ns.max),
            number(*noop_ns),
        ];
        table.add_row(row);
    }
    println!("{table}");
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).context("staying on one processor")?;
    let mut rig = Rig::new()?;
    let mut figures = Vec::new();
    for scenario in scenarios() {
        if format!("{} {}", scenario.name, scenario.mode).contains(&cli.filter) {
            figures.push(measure(&mut rig, &scenario, cli.quick)?);
        }
    }
    match cli.format {
        Format::Table => show(&figures),
        Format::Json => println!("{}", serde_json::to_string_pretty(&figures)?),
    }
    Ok(())
}
