//! How punctual and how costly many checks are: the product's checker over its real probes, with every
//! backend an address of its own on the loopback, which one server answers for.
//!
//! The server notes when each probe arrives. A probe is late by as much as it comes after its turn, which
//! is taken from the most punctual one of the same backend; drift is how much later the last comes than the
//! first. The server's own processor time is not the checker's and is taken off.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    health::{Checker, Target, TargetConfig, Way, probes_in_flight, reply::Asked},
    model::{Check, Health, Http, Probe, ServiceId},
    snapshot::Condition,
};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::{Semaphore, mpsc, oneshot},
};

use crate::load::raise_file_limit;

/// Backends, each checked once an interval.
const BACKENDS: u32 = 10_000;
const INTERVAL: Duration = Duration::from_secs(1);
/// Threads of the checker, as many as the goal has processors.
const THREADS: usize = 2;
/// Answers under way at once: where the machine is too slow, probes wait in the backlog, and descriptors
/// remain.
const ANSWERS: usize = 2_048;
/// Intervals until connections, caches and allocators are as they stay.
const WARM: u32 = 2;

/// What was measured; its fields are the JSON's.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The kind of check.
    pub scenario: &'static str,
    /// Backends checked.
    pub backends: u32,
    /// Milliseconds from probe to probe.
    pub interval_ms: u128,
    /// Probes that arrived.
    pub probes: usize,
    /// Turns that had none.
    pub missing: usize,
    /// Milliseconds that half of the probes were late at most.
    pub late_p50_ms: f64,
    /// Milliseconds that 99 of 100 were late at most.
    pub late_p99_ms: f64,
    /// Milliseconds that any was late.
    pub late_max_ms: f64,
    /// Milliseconds that a backend's last probe was later than its first, half of the backends.
    pub drift_ms: f64,
    /// Processor time of the checker, in percent of one processor.
    pub cpu_percent: f64,
}

/// Milliseconds that 99 of 100 probes may be late, and half of them: some thirty times what they are where nobody else has the
/// processors.
const MOST_LATE: [f64; 2] = [50.0, 10.0];
/// Milliseconds that half of the backends' last probes may be later than their first: a quarter of one for each interval, where a
/// rhythm that counted from when probes end would be later by as much as these take.
const MOST_DRIFT: f64 = 5.0;

/// What is worse than it may be, in words; of a quick run, lateness is judged by half of the probes alone, as others may have had the processors
/// for a part of so short a time.
pub fn exceeded(figures: &[Figure], quick: bool) -> Vec<String> {
    let mut beyond = Vec::new();
    for figure in figures {
        let (scenario, missing) = (figure.scenario, figure.missing);
        if missing > 0 {
            let all = figure.probes + missing;
            beyond.push(format!(
                "{scenario}: {missing} of {all} probes are missing, and none may be"
            ));
        }
        let [of_most, of_half] = MOST_LATE;
        let (of, late, most) = match quick {
            true => ("half", figure.late_p50_ms, of_half),
            false => ("99 of 100", figure.late_p99_ms, of_most),
        };
        if late > most {
            beyond.push(format!(
                "{scenario}: {of} of the probes are {late:.2} ms late at most, and {most} ms is the most that they may be"
            ));
        }
        let drift = figure.drift_ms;
        if drift.abs() > MOST_DRIFT {
            beyond.push(format!(
                "{scenario}: probes drift by {drift:.2} ms, and {MOST_DRIFT} ms is the most that they may"
            ));
        }
    }
    beyond
}

/// Measures each kind for `intervals`.
///
/// # Errors
/// The server or the checker does not run.
pub fn run(quick: bool, filter: &str) -> Result<Vec<Figure>> {
    let intervals = if quick { 5 } else { 20 };
    let scenarios = [("tcp", Probe::TCP), ("http", Probe::Http(Http::default()))];
    let chosen = scenarios
        .into_iter()
        .filter(|(name, _)| name.contains(filter));
    chosen
        .map(|(name, probe)| measure(name, probe, intervals))
        .collect()
}

fn measure(scenario: &'static str, probe: Probe, intervals: u32) -> Result<Figure> {
    raise_file_limit()?;
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let server = Server::start(matches!(probe, Probe::Http(_)))?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let checker = start(&runtime, probe, server.port, probes_in_flight(descriptors));
    thread::sleep(INTERVAL * WARM);
    let before = processor_time(UsageWho::RUSAGE_SELF)?;
    #[expect(clippy::disallowed_methods, reason = "what is measured")]
    let begin = Instant::now();
    thread::sleep(INTERVAL * intervals);
    let (end, used) = (
        begin.elapsed(),
        processor_time(UsageWho::RUSAGE_SELF)? - before,
    );
    drop(checker);
    runtime.shutdown_timeout(INTERVAL);
    let seen = server.stop(begin, begin + end)?;
    let mut late = Vec::new();
    let mut drift = Vec::new();
    for arrivals in seen.arrivals.values() {
        let own = lateness(arrivals, begin);
        drift.extend(
            own.first()
                .zip(own.last())
                .map(|(first, last)| last - first),
        );
        late.extend(own);
    }
    ensure!(!late.is_empty(), "no probe has arrived");
    late.sort_by(f64::total_cmp);
    drift.sort_by(f64::total_cmp);
    let of = |sorted: &[f64], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    let silent = (BACKENDS as usize).saturating_sub(seen.arrivals.len());
    let missed = seen.arrivals.values().map(|all| missed(all, begin, end));
    let checker_used = used.saturating_sub(seen.used);
    Ok(Figure {
        scenario,
        backends: BACKENDS,
        interval_ms: INTERVAL.as_millis(),
        probes: late.len(),
        missing: missed.sum::<usize>() + silent * intervals as usize,
        late_p50_ms: of(&late, 0.5),
        late_p99_ms: of(&late, 0.99),
        late_max_ms: of(&late, 1.0),
        drift_ms: of(&drift, 0.5),
        cpu_percent: checker_used.as_secs_f64() / end.as_secs_f64() * 100.0,
    })
}

fn start(runtime: &Runtime, probe: Probe, port: u16, in_flight: usize) -> Checker {
    let _inside = runtime.enter();
    let (events, mut news) = mpsc::channel(4_096);
    runtime.spawn(async move { while news.recv().await.is_some() {} });
    let mut checker = Checker::new(events, in_flight);
    let health = Arc::new(Health::from(Check {
        interval: INTERVAL,
        ..Check::new(probe)
    }));
    let target = |n: u32| {
        let [_, high, middle, low] = n.to_be_bytes();
        let address = Ipv4Addr::new(127, 1 + high, middle, low);
        let config = TargetConfig {
            smooth: None,
            health: Arc::clone(&health),
            alone: true,
            way: Way::default(),
            initial: Condition::Starting,
            asked: Asked::default(),
            also: Arc::default(),
        };
        let target = Target {
            service: service(),
            address: SocketAddr::from((address, port)),
        };
        (target, config)
    };
    checker.set((1..=BACKENDS).map(target).collect());
    checker
}

fn service() -> ServiceId {
    let vip = SocketAddr::from(([10, 0, 0, 1], 80));
    ServiceId::new(vip, lb_userspace::model::Protocol::Tcp)
}

/// How late each probe was, in milliseconds, by the most punctual one.
fn lateness(arrivals: &[Instant], begin: Instant) -> Vec<f64> {
    let nanos = |at: &Instant| at.duration_since(begin).as_nanos() as i128;
    let interval = INTERVAL.as_nanos() as i128;
    let Some(first) = arrivals.first().map(nanos) else {
        return Vec::new();
    };
    let turns = arrivals.iter().map(nanos).map(|at| {
        let turn = (at - first + interval / 2).div_euclid(interval);
        at - turn * interval
    });
    let turns: Vec<i128> = turns.collect();
    let punctual = turns.iter().min().copied().unwrap_or(first);
    turns
        .into_iter()
        .map(|at| (at - punctual) as f64 / 1e6)
        .collect()
}

/// Turns without a probe in what was measured; at either end, one is missing once it is half an interval late.
fn missed(arrivals: &[Instant], begin: Instant, took: Duration) -> usize {
    let (Some(&first), Some(&last)) = (arrivals.first(), arrivals.last()) else {
        return 0;
    };
    let intervals = |time: Duration| time.as_secs_f64() / INTERVAL.as_secs_f64();
    let turns = intervals(last - first).round() as usize + 1;
    let ends = [first - begin, took.saturating_sub(last - begin)];
    let at_ends = ends.map(|time| (intervals(time) - 0.5).max(0.0) as usize);
    turns.saturating_sub(arrivals.len()) + at_ends.iter().sum::<usize>()
}

fn processor_time(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who).context("reading processor time")?;
    let micros = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Answers for all backends, on a thread of its own.
struct Server {
    port: u16,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<Vec<Arrival>>>,
}

/// A probe.
struct Arrival {
    backend: IpAddr,
    at: Instant,
    /// Processor time that the server had used until then.
    used: Duration,
}

/// What the server saw between two times.
struct Seen {
    arrivals: BTreeMap<IpAddr, Vec<Instant>>,
    used: Duration,
}

impl Server {
    fn start(http: bool) -> Result<Self> {
        let (told, tell) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || -> Result<Vec<Arrival>> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
                let listener = socket.listen(4_096)?;
                told.send(listener.local_addr()?.port())
                    .context("telling the port")?;
                serve(listener, http, stopped).await
            })
        });
        let port = tell.recv().context("the server has ended")?;
        Ok(Self { port, stop, thread })
    }

    fn stop(self, from: Instant, to: Instant) -> Result<Seen> {
        let _ = self.stop.send(());
        let all = self.thread.join();
        let all = all.map_err(|_| anyhow::anyhow!("the server panicked"))??;
        let mut arrivals: BTreeMap<IpAddr, Vec<Instant>> = BTreeMap::new();
        let within = || {
            all.iter()
                .filter(|arrival| (from..to).contains(&arrival.at))
        };
        for arrival in within() {
            arrivals
                .entry(arrival.backend)
                .or_default()
                .push(arrival.at);
        }
        let first = within().next().context("no probe has arrived")?.used;
        let last = within().next_back().map_or(first, |arrival| arrival.used);
        Ok(Seen {
            arrivals,
            used: last - first,
        })
    }
}

async fn serve(
    listener: TcpListener,
    http: bool,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    let room = Arc::new(Semaphore::new(ANSWERS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await?;
        tokio::select! {
            _ = &mut stopped => return Ok(arrivals),
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("a probe")?;
                #[expect(clippy::disallowed_methods, reason = "what is measured")]
                let at = Instant::now();
                arrivals.push(Arrival {
                    backend: stream.local_addr()?.ip(),
                    at,
                    used: processor_time(UsageWho::RUSAGE_THREAD)?,
                });
                if http {
                    tokio::spawn(async move {
                        let _permit = permit;
                        answer(stream).await
                    });
                }
            }
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 1_024];
    if stream.read(&mut request).await? > 0 {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_told_from_the_most_punctual_probe_and_a_missing_one_shifts_nothing() {
        #[expect(clippy::disallowed_methods, reason = "an origin")]
        let begin = Instant::now();
        let ms = |ms| begin + Duration::from_millis(ms);
        let late = lateness(&[ms(110), ms(1_100), ms(3_105)], begin);
        assert_eq!(late, [10.0, 0.0, 5.0]);
        assert_eq!(lateness(&[], begin), Vec::<f64>::new());
    }

    #[test]
    fn turns_without_a_probe_are_missing_and_a_late_one_is_not() {
        #[expect(clippy::disallowed_methods, reason = "an origin")]
        let begin = Instant::now();
        let missed = |at: &[u64]| {
            let at: Vec<Instant> = at
                .iter()
                .map(|&ms| begin + Duration::from_millis(ms))
                .collect();
            missed(&at, begin, Duration::from_secs(5))
        };
        assert_eq!(missed(&[110, 1_110, 2_400, 3_110, 4_110]), 0);
        assert_eq!(missed(&[990, 1_990, 2_990, 3_990]), 0, "one fell outside");
        assert_eq!(missed(&[110, 1_110, 3_110, 4_110]), 1);
        assert_eq!(missed(&[2_110, 3_110]), 1 + 1);
    }

    #[test]
    fn what_is_missing_or_too_late_or_drifts_is_told() {
        let drifting = |drift_ms, missing, late_p50_ms, late_p99_ms| Figure {
            scenario: "tcp",
            backends: BACKENDS,
            interval_ms: 1_000,
            probes: 50_000,
            missing,
            late_p50_ms,
            late_p99_ms,
            late_max_ms: 1e9,
            drift_ms,
            cpu_percent: 1e9,
        };
        let figure = |missing, p50, p99| drifting(0.0, missing, p50, p99);
        let told = |figure: Figure, quick| exceeded(&[figure], quick);
        assert_eq!(told(figure(0, 10.0, 50.0), false), [""; 0]);
        let missing = told(figure(1, 0.0, 0.0), true);
        assert_eq!(
            missing,
            ["tcp: 1 of 50001 probes are missing, and none may be"]
        );
        let late = told(figure(0, 0.0, 50.1), false);
        assert!(
            late[0].starts_with("tcp: 99 of 100 of the probes are 50.10 ms late"),
            "{late:?}"
        );
        assert_eq!(told(figure(0, 0.0, 50.1), true), [""; 0]);
        assert_eq!(told(figure(0, 10.1, 10.1), true).len(), 1);
        assert_eq!(told(drifting(-5.0, 0, 0.0, 0.0), true), [""; 0]);
        for drift in [5.1, -5.1] {
            let drifts = told(drifting(drift, 0, 0.0, 0.0), true);
            assert!(drifts[0].starts_with("tcp: probes drift by"), "{drifts:?}");
        }
    }
}
