//! Weights that follow how backends fare: what clients have of it where one server is four times as slow as the others.

use std::{
    fmt::{self, Display, Formatter},
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    config::{Health, Service},
    load::{
        Report,
        open_loop::{OpenLoop, connections_per_second},
    },
    queue::{self, QueueServer},
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, v4_pool, vip},
    topology::{Topology, backend_name, backend_v4, vip_v4},
    wait::wait_until,
};
use tokio::time::Instant;

/// What a request takes, and at the slow server.
const TAKES: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(40);
/// Requests that may wait at a server.
const ROOM: usize = 16;
/// New connections a second: a third of them is more than the slow server can serve.
const RATE: u32 = 105;
const MEASURED: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(100);
const ADAPTIVE: &str = "{from=[\"latency\"],interval=\"1s\"}";

/// What clients have noticed.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    /// Of the requests that were answered.
    p99: Duration,
    failed: usize,
    /// Answered by the slow server.
    slow: usize,
    all: usize,
}

impl Display for Noticed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (p99, failed, slow, all) = (self.p99.as_millis(), self.failed, self.slow, self.all);
        write!(f, "| {p99} ms | {failed} of {all} | {slow} |")
    }
}

fn noticed(report: &Report) -> Result<Noticed> {
    let answered = report.attempts.iter().filter(|a| a.outcome.is_ok());
    let mut took: Vec<Duration> = answered.map(|a| a.ended - a.started).collect();
    took.sort_unstable();
    let all = report.attempts.len();
    ensure!(took.len() > all / 2, "hardly any answers");
    let answers = report.per_backend();
    Ok(Noticed {
        p99: took[took.len() * 99 / 100],
        failed: all - took.len(),
        slow: answers.get(&backend_name(3)).copied().unwrap_or(0),
        all,
    })
}

/// Percent of the third backend's weight that is in effect.
fn share(stage: &Stage, service: &Service) -> Option<u64> {
    let slow = (backend_v4(3), queue::PORT).into();
    let shown = stage.backend(service, slow).ok().flatten()?;
    shown["adaptive"]["weight_percent"].as_u64()
}

#[test]
fn adaptive_weights_spare_a_server_that_is_four_times_as_slow_and_its_clients() -> Result<()> {
    with_root(
        "adaptive_weights_spare_a_server_that_is_four_times_as_slow_and_its_clients",
        || {
            let pool = v4_pool(queue::PORT);
            let service = Service::new(tcp(vip_v4(1)), "nat", Health::NONE, pool)
                .checked(&[
                    "{ type = \"http\", path = \"/health\", interval = \"1s\", timeout = \"1s\" }",
                ])
                .with("moving_time", "1s");
            let stage = Stage::new(Topology::exclusive(BACKENDS)?, vec![service.clone()])?;
            let mut servers = Vec::new();
            for n in 1..=BACKENDS {
                let takes = if n == 3 { SLOW } else { TAKES };
                let host = stage.topology.backend(n);
                servers.push(QueueServer::start(host, &backend_name(n), takes, ROOM)?);
            }
            for n in 1..=BACKENDS {
                stage.await_condition(&service, (backend_v4(n), queue::PORT).into(), "up")?;
            }
            let (client, target) = (&stage.topology.client, vip(&service)?);
            // Until queues are as long as they get.
            connections_per_second(client, target, RATE, Duration::from_secs(3))?;
            let fixed = noticed(&connections_per_second(client, target, RATE, MEASURED)?)?;
            println!("| as configured {fixed}");
            let load = OpenLoop::start(client, target, RATE)?;
            stage.lbctl(&format!(
                "service set {} --adaptive {ADAPTIVE}",
                service.vip
            ))?;
            let (begun, mut fewest) = (Instant::now(), f64::MAX);
            wait_until(
                "the slow server has the share that it can serve",
                SOON,
                || {
                    if let Ok(slots) = stage.slots(&service) {
                        let all = slots.steady + slots.moving + slots.settling;
                        fewest = fewest.min(f64::from(slots.steady) / f64::from(all));
                    }
                    share(&stage, &service).is_some_and(|share| share <= 45)
                },
            )?;
            println!(
                "followed within {:?}, {:.1}% of slots steady at least",
                begun.elapsed(),
                fewest * 100.0
            );
            load.stop()?;
            sleep(Duration::from_secs(1));
            let adaptive = noticed(&connections_per_second(client, target, RATE, MEASURED)?)?;
            let percent = share(&stage, &service);
            println!("| adaptive {adaptive} its weight: {percent:?}%");
            ensure!(fewest >= 0.95, "{fewest}");
            ensure!(adaptive.p99 * 2 < fixed.p99, "{adaptive:?} {fixed:?}");
            ensure!(
                fixed.failed > 20,
                "{fixed:?}: the slow server was not overloaded"
            );
            ensure!(adaptive.failed * 4 < fixed.failed, "{adaptive:?} {fixed:?}");
            ensure!(adaptive.slow > 0, "{adaptive:?}");
            Ok(())
        },
    )
}
