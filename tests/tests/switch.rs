//! One store puts a change of all services in force: while it is made, no packet sees a mix.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use lb_common::tables::feature;
use lb_tests::{
    bench::{
        balancer::{Balancer, backend_of},
        frame::{Frame, Payload, flags},
        services::{Also, Guarded, Kind, Pool, numbered, repool},
    },
    skip::with_root,
};
use lb_userspace::{
    dataplane::{Capacity, bpf::LoadOptions},
    model::{FlowState, Mode, Scheduler},
};

const SERVICES: u32 = 1_000;
const RING: u32 = 251;
/// Changes of all services, each to a pool of its own.
const CHANGES: u8 = 12;
/// Threads that look.
const WATCHERS: usize = 2;
/// Packets that have to be seen between two changes, so that each is looked at before and after.
const LOOKS: u64 = 200;

fn pool(number: u8) -> Pool {
    Pool {
        number,
        backends: 2,
        v6: false,
    }
}

fn balancer() -> Result<Balancer> {
    let mut balancer = Balancer::load(&LoadOptions {
        pins: None,
        capacity: Capacity {
            services: 1_024,
            backends: 8_192,
            members: 16_384,
            slots: 4 * SERVICES * (RING + 1),
            flows: 1_024,
            half_open: 1_024,
            fragments: 1_024,
            ..Capacity::default()
        },
        features: feature::IPIP,
        log_level: 0,
    })?;
    let kind = Kind {
        quic: None,
        guarded: Guarded::Open,
        mode: Mode::Ipip,
        scheduler: Scheduler::Maglev,
        flow_state: FlowState::Auto,
        ring_size: Some(RING),
        pool: pool(FIRST),
        also: Also::Nothing,
    };
    let services = (0..SERVICES).map(|n| {
        let mut service = kind.service(numbered(n))?;
        // Stateless: old flows must not stay with old backends, or a mix would be right.
        service.moving_time = Some(Duration::ZERO);
        Ok(service)
    });
    balancer.serve(services.collect::<Result<_>>()?)?;
    for number in FIRST..=FIRST + CHANGES {
        balancer.reach_pool(pool(number));
    }
    Ok(balancer)
}

/// Pools are numbered by the change that brought them, from here on.
const FIRST: u8 = 2;

/// What the watchers share.
#[derive(Default)]
struct Watch {
    /// The latest pool that any packet was seen to reach.
    latest: AtomicU8,
    /// Packets seen.
    looks: AtomicU64,
    /// No more are wanted, or one has failed.
    over: AtomicBool,
}

impl Watch {
    /// Runs packets to services all over the place. Where one has reached a pool, no packet that is sent
    /// afterwards, to whichever service, may reach an earlier one.
    fn look(&self, program: &Xdp, seed: u64) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(seed);
        while !self.over.load(Ordering::Acquire) {
            let service = numbered(random.u32(..SERVICES));
            let frame = Frame::new(service.vip, Payload::Tcp(flags::ACK), 0, 1);
            let before = self.latest.load(Ordering::Acquire);
            let backend = backend_of(program, &frame.at(random.u64(..1 << 20)))
                .with_context(|| format!("a packet to {service}"))?;
            let reached = number(backend)?;
            ensure!(
                reached >= before,
                "{service} still leads to pool {reached}, although {before} was in force before"
            );
            self.latest.fetch_max(reached, Ordering::AcqRel);
            self.looks.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until so many more packets were seen; false where none will be.
    fn wait(&self) -> bool {
        let enough = self.looks.load(Ordering::Relaxed) + LOOKS;
        while self.looks.load(Ordering::Relaxed) < enough {
            if self.over.load(Ordering::Acquire) {
                return false;
            }
            thread::yield_now();
        }
        true
    }
}

/// The pool whose backend an address is.
fn number(backend: IpAddr) -> Result<u8> {
    match backend {
        IpAddr::V4(v4) => Ok(v4.octets()[1]),
        IpAddr::V6(v6) => anyhow::bail!("{v6} is of no pool"),
    }
}

#[test]
fn a_change_of_a_thousand_services_is_seen_whole_by_packets_under_way() -> Result<()> {
    with_root(
        "a_change_of_a_thousand_services_is_seen_whole_by_packets_under_way",
        run,
    )
}

fn run() -> Result<()> {
    let Balancer {
        mut program,
        mut core,
    } = balancer()?;
    let program: &Xdp = program.xdp()?;
    let watch = Watch::default();
    let mut switches = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let watchers: Vec<_> = (0..WATCHERS as u64)
            .map(|seed| {
                let watch = &watch;
                scope.spawn(move || {
                    let looked = watch.look(program, seed);
                    watch.over.store(true, Ordering::Release);
                    looked
                })
            })
            .collect();
        let changed = (FIRST + 1..=FIRST + CHANGES).try_for_each(|number| -> Result<()> {
            if watch.wait() {
                core.change(repool(core.state(), |_| Some(pool(number))))?;
                switches.extend(core.dataplane_mut().switch.take());
            }
            Ok(())
        });
        watch.wait();
        watch.over.store(true, Ordering::Release);
        for watcher in watchers {
            watcher.join().expect("a watcher does not panic")?;
        }
        changed
    })?;
    ensure!(
        watch.latest.into_inner() == FIRST + CHANGES,
        "the last change was never seen"
    );
    switches.sort();
    println!(
        "{} packets over {CHANGES} changes of {SERVICES} services; the switch took {:?}, {:?} at most",
        watch.looks.into_inner(),
        switches[switches.len() / 2],
        switches[switches.len() - 1],
    );
    Ok(())
}
