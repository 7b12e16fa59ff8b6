//! One failure under load: what is done when, and what must hold of what came of it.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::{
    load::{
        Attempt, Report,
        app::App,
        held::{Held, HeldReport},
        open_loop::OpenLoop,
    },
    topology::backend_name,
    wait::wait_for,
};
use tokio::time::Instant;

use crate::{
    fault::{Case, Lasting},
    figures::{Figures, Row},
    stand::{BACKENDS, FALL, INTERVAL, Stand, TIMEOUT, vip},
};

/// New connections a second, to each service.
pub const RATE: u32 = 40;
/// Connections kept alive, to each service.
pub const HELD: usize = 24;
/// From one question on each of them to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// Before a failure, and once all is well again.
const STEADY: Duration = Duration::from_millis(400);
/// How long a backend that flaps is in either state.
const FLAP: Duration = Duration::from_secs(2);
/// What checks may take longer than they should on a machine that is busy otherwise.
const SLACK: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(30);

/// One failure from its beginning to its end, as a service saw it.
#[derive(Debug, Clone, Copy)]
struct Episode {
    began: Instant,
    /// The agent said that all victims are down: shortly after it had taken effect.
    found: Instant,
    /// From when on no new connection may fail.
    until: Instant,
    /// It was over, and the backends about to be up.
    healed: Instant,
}

/// The load on one service.
struct Load {
    new: OpenLoop,
    held: Held,
}

/// Brings a failure about, and ends it again, while there is load.
///
/// # Errors
/// It is not found in time, something cannot be done, or a client noticed what it must not.
pub fn run(stand: &mut Stand, case: &Case, figures: &mut Figures) -> Result<()> {
    let mut loads = BTreeMap::new();
    for app in App::ALL {
        let client = &stand.stage.topology.client;
        let new = OpenLoop::start_to(app, client, vip(app), RATE)?;
        let held = Held::open_to(app, client, vip(app), HELD, PERIOD)?;
        loads.insert(app, Load { new, held });
    }
    thread::sleep(STEADY);
    let mut episodes: BTreeMap<App, Vec<Episode>> = BTreeMap::new();
    for _ in 0..case.times {
        for (app, episode) in suffer(stand, case)? {
            episodes.entry(app).or_default().push(episode);
        }
    }
    thread::sleep(STEADY);
    for (app, load) in loads {
        let episodes = episodes.remove(&app).unwrap_or_default();
        let (report, held) = (load.new.stop()?, load.held.stop()?);
        let row = judge(case, &episodes, &report, &held);
        let row = row.map_err(|error| error.context(app.name()))?;
        if case.apps.contains(&app) {
            println!("{}: {}: {row}", case.name, app.name());
            figures.note(case.name, app, row);
        }
    }
    Ok(())
}

/// Breaks the victims, waits until that is found, and mends them; what each service saw.
fn suffer(stand: &mut Stand, case: &Case) -> Result<BTreeMap<App, Episode>> {
    if case.without_agent {
        stand.stage.agent.sigkill();
    }
    let began = Instant::now();
    let lasting = Lasting::begin(stand, case)?;
    if case.without_agent {
        stand.stage.agent.restart()?;
    }
    let watched = Instant::now();
    let found = await_found(stand, case)?;
    let bound = INTERVAL * FALL + TIMEOUT + SLACK;
    for (app, &at) in &found {
        let took = at - watched;
        ensure!(took <= bound, "{}: found after {took:?}", app.name());
    }
    // Every kept connection has been used meanwhile, so that none that broke goes unnoticed.
    thread::sleep(2 * PERIOD);
    if case.times > 1 {
        thread::sleep((began + FLAP).saturating_duration_since(Instant::now()));
    }
    let healed = Instant::now();
    lasting.heal(stand)?;
    stand.await_conditions("up", &App::ALL, &(1..=BACKENDS).collect::<Vec<_>>())?;
    if case.times > 1 {
        thread::sleep((healed + FLAP).saturating_duration_since(Instant::now()));
    }
    // With nobody left, connections are refused until somebody is back.
    let recovered = Instant::now();
    let all = case.victims.len() == usize::from(BACKENDS);
    let episode = |(app, found)| {
        let until = if all { recovered } else { found };
        let healed = healed.max(until);
        let episode = Episode {
            began,
            found,
            until,
            healed,
        };
        (app, episode)
    };
    Ok(found.into_iter().map(episode).collect())
}

/// When each service's checks had found all victims.
fn await_found(stand: &Stand, case: &Case) -> Result<BTreeMap<App, Instant>> {
    let mut found = BTreeMap::new();
    wait_for("the failure is found", SOON, || {
        let down = stand.having("down").ok()?;
        let now = Instant::now();
        for app in case.apps {
            if case.victims.iter().all(|n| down[app].contains(n)) {
                found.entry(*app).or_insert(now);
            }
        }
        (found.len() == case.apps.len()).then_some(())
    })?;
    Ok(found)
}

fn judge(case: &Case, episodes: &[Episode], report: &Report, held: &HeldReport) -> Result<Row> {
    let victims: Vec<String> = case.victims.iter().map(|&n| backend_name(n)).collect();
    let affected = !episodes.is_empty();
    let is_victim = |name: &String| affected && victims.contains(name);
    let met = |attempt: &Attempt| attempt.outcome.as_ref().map_or(true, is_victim);
    for attempt in report
        .attempts
        .iter()
        .filter(|attempt| attempt.outcome.is_err())
    {
        let explained =
            |episode: &Episode| attempt.ended >= episode.began && attempt.started <= episode.until;
        ensure!(
            episodes.iter().any(explained),
            "a connection failed that began {}: {:?}",
            since(episodes, attempt.started),
            attempt.outcome
        );
    }
    for episode in episodes {
        let late = |attempt: &&Attempt| {
            (episode.until..episode.healed).contains(&attempt.started) && met(attempt)
        };
        let late = report.attempts.iter().find(late);
        ensure!(late.is_none(), "met a victim after it was found: {late:?}");
    }
    let elsewhere: Vec<_> = held
        .lives
        .iter()
        .filter(|life| life.broken.is_some())
        .filter(|life| !life.backend.as_ref().is_some_and(is_victim))
        .collect();
    ensure!(elsewhere.is_empty(), "connections broke: {elsewhere:?}");
    let drained = |episode: &Episode| {
        let during = report.attempts.iter().filter(|attempt| met(attempt));
        let during = during.filter(|a| (episode.began..=episode.until).contains(&a.started));
        let last = during.map(|attempt| attempt.started).max();
        last.map_or(Duration::ZERO, |last| last - episode.began)
    };
    let most = |of: &dyn Fn(&Episode) -> Duration| episodes.iter().map(of).max();
    Ok(Row {
        found: most(&|episode| episode.found - episode.began).unwrap_or_default(),
        drained: most(&drained).unwrap_or_default(),
        failed: report.failures().count(),
        attempts: report.attempts.len(),
        broken: held.broken_per_backend().values().sum(),
        elsewhere: elsewhere.len(),
    })
}

/// When something happened, beside the first failure.
fn since(episodes: &[Episode], at: Instant) -> String {
    match episodes.first() {
        None => "without a failure".to_owned(),
        Some(first) => format!(
            "{:?} before or {:?} after the failure",
            first.began.saturating_duration_since(at),
            at.saturating_duration_since(first.began)
        ),
    }
}
