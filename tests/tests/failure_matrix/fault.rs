//! The failures, and how each is brought about and ended. Measures nothing.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{
    load::app::App,
    netns::Namespace,
    process::{run, run_with_input},
    topology::vip_v4,
};
use nix::sys::signal::Signal;

use crate::stand::Stand;

/// Of a slow backend's time, that in which it runs, and that in which it does not: a tenth. The latter is
/// longer than all probes take that count one down.
const RUNS: Duration = Duration::from_millis(150);
const RESTS: Duration = Duration::from_millis(1_350);
/// Added to a port that is closed, where the server listens instead.
const ELSEWHERE: u16 = 1_000;
const TABLE: &str = "fault";

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to every process.
    Killed,
    /// SIGSTOP to every process: the kernel goes on to accept connections.
    Stopped,
    /// The servers listen on other ports.
    Closed,
    /// The host's link goes down.
    Unplugged,
    /// A firewall drops what comes to the ports.
    Dropped,
    /// A firewall answers it with resets.
    Reset,
    /// The web server answers 500 to everything.
    Errors,
    /// Every process runs a tenth of the time.
    Slow,
    /// The host loses the VIP, which it has to have in modes other than `nat`.
    NoVip,
}

/// A row of the matrix.
#[derive(Debug)]
pub struct Case {
    /// What people call it.
    pub name: &'static str,
    /// What happens.
    pub fault: Fault,
    /// To which backends, counted from 1.
    pub victims: &'static [u8],
    /// Whose servers notice.
    pub apps: &'static [App],
    /// How often.
    pub times: u32,
    /// Whether the agent is killed just before, and started again just after.
    pub without_agent: bool,
    /// How packets reach the backends.
    pub mode: &'static str,
}

const ONE: Case = Case {
    name: "process killed",
    fault: Fault::Killed,
    victims: &[2],
    apps: &App::ALL,
    times: 1,
    without_agent: false,
    mode: "nat",
};

const fn one(name: &'static str, fault: Fault) -> Case {
    Case { name, fault, ..ONE }
}

const fn killed(name: &'static str, victims: &'static [u8]) -> Case {
    Case {
        name,
        victims,
        ..ONE
    }
}

/// All of them.
pub const CASES: [Case; 15] = [
    ONE,
    one("SIGSTOP", Fault::Stopped),
    one("port closed", Fault::Closed),
    one("host link down", Fault::Unplugged),
    one("blackhole", Fault::Dropped),
    one("RST by firewall", Fault::Reset),
    Case {
        apps: &[App::Web],
        ..one("HTTP 500s", Fault::Errors)
    },
    one("slow (10x)", Fault::Slow),
    Case {
        times: 3,
        ..one("flapping every 2 s", Fault::Reset)
    },
    killed("half the pool", &[2, 3]),
    killed("all but one", &[1, 2, 3]),
    killed("all", &[1, 2, 3, 4]),
    Case {
        without_agent: true,
        ..killed("agent killed meanwhile", &[2])
    },
    Case {
        mode: "ipip",
        ..one("VIP missing (ipip)", Fault::NoVip)
    },
    Case {
        mode: "gue",
        ..one("VIP missing (gue)", Fault::NoVip)
    },
];

/// A fault that lasts until it is healed.
#[derive(Debug)]
pub struct Lasting {
    fault: Fault,
    victims: &'static [u8],
    slowed: Vec<Slowed>,
}

impl Lasting {
    /// Brings a fault about.
    ///
    /// # Errors
    /// It cannot.
    pub fn begin(stand: &mut Stand, case: &Case) -> Result<Self> {
        let (fault, victims) = (case.fault, case.victims);
        let mut slowed = Vec::new();
        for &n in victims {
            let host = stand.stage.topology.backend(n);
            match fault {
                Fault::Killed => host.signal(Signal::SIGKILL),
                Fault::Stopped => host.signal(Signal::SIGSTOP),
                Fault::Closed => stand.serve_at(n, ELSEWHERE)?,
                Fault::Unplugged => stand.stage.topology.silence(n)?,
                Fault::Dropped => firewall(host, "drop")?,
                Fault::Reset => firewall(host, "reject with tcp reset")?,
                Fault::Errors => stand.web(n).fail_requests(true)?,
                Fault::Slow => slowed.push(Slowed::begin(host)),
                Fault::NoVip => vip(host, "del")?,
            }
        }
        Ok(Self {
            fault,
            victims,
            slowed,
        })
    }

    /// Ends it; returns once what was broken serves again.
    ///
    /// # Errors
    /// It does not.
    pub fn heal(self, stand: &mut Stand) -> Result<()> {
        drop(self.slowed);
        for &n in self.victims {
            let host = stand.stage.topology.backend(n);
            match self.fault {
                Fault::Killed | Fault::Closed => stand.serve_at(n, 0)?,
                Fault::Stopped => host.signal(Signal::SIGCONT),
                Fault::Unplugged => stand.stage.topology.unsilence(n)?,
                Fault::Dropped | Fault::Reset => {
                    let delete = ["delete", "table", "inet", TABLE];
                    run(host.command("nft").args(delete)).map(drop)?;
                }
                Fault::Errors => stand.web(n).fail_requests(false)?,
                Fault::Slow => {}
                Fault::NoVip => vip(host, "add")?,
            }
        }
        Ok(())
    }
}

/// Adds the VIP to a host's loopback, or deletes it there.
fn vip(host: &Namespace, verb: &str) -> Result<()> {
    let address = format!("{}/32", vip_v4(1));
    run(host
        .command("ip")
        .args(["addr", verb, &address, "dev", "lo"]))
    .map(drop)
}

fn firewall(host: &Namespace, verdict: &str) -> Result<()> {
    let ports: Vec<String> = App::ALL.map(|app| app.port().to_string()).to_vec();
    let rules = format!(
        "table inet {TABLE} {{ chain input {{ type filter hook input priority 0; \
         tcp dport {{ {} }} {verdict}; }}; }}",
        ports.join(", ")
    );
    let mut nft: Command = host.command("nft");
    run_with_input(nft.args(["-f", "-"]), &rules)
        .map(drop)
        .context("a firewall")
}

/// Processes that run a tenth of the time, until this is dropped.
#[derive(Debug)]
struct Slowed {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    fn begin(host: &Namespace) -> Self {
        let (over, host) = (Arc::new(AtomicBool::new(false)), host.clone());
        let is_over = Arc::clone(&over);
        let slow = move || {
            while !is_over.load(Ordering::Relaxed) {
                host.signal(Signal::SIGSTOP);
                thread::sleep(RESTS);
                host.signal(Signal::SIGCONT);
                thread::sleep(RUNS);
            }
        };
        let thread = Some(thread::spawn(slow));
        Self { over, thread }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
