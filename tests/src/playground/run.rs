//! The loop: keys, signals, requests' outcomes and the agent's answers to the board; the board to
//! the screen. Owns time and the terminal, which is given back whatever happens.

use std::{
    env, fs,
    future::pending,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use lb_userspace::{api::client::Client, instance};
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until},
};

use super::{
    board::Board,
    claim::Claim,
    hints::hints,
    keys::{Action, Keys},
    lines,
    load::Load,
    offers, picture, screen,
    stage::{Hand, Order, Stage},
};
use crate::binaries;

/// How often the agent is asked.
const ASK: Duration = Duration::from_millis(250);
/// An agent that answers later than this is taken for dead.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the screen is drawn.
const FRAME: Duration = Duration::from_millis(200);
/// How often lines are printed.
const LINES: Duration = Duration::from_secs(2);

/// The playground's arguments.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask run --",
    about = "A client, the balancer and three nginx servers in network namespaces, to try the product on",
    after_help = "Exit codes: 0 ended as asked; 1 failure, such as another playground; 2 wrong usage."
)]
pub struct Options {
    /// End after so many seconds; failure where a request failed or a service did not reach every
    /// backend
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// What namespaces (NAME-client …) and the agent's instance are called; one playground each
    #[arg(long, default_value = "lb", value_parser = instance::parse_name)]
    name: String,
    /// Write the last screen to this file as SVG when it ends
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Makes everything, plays until asked to end, and removes everything.
///
/// # Errors
/// The name is taken, something cannot be made or removed, or, with an end, something failed.
pub async fn run(options: Options) -> Result<()> {
    // Before anything is made that would be left behind.
    let signals = Signals::new()?;
    let claim = Claim::take(&options.name)?;
    note("making network namespaces, servers and the balancer");
    let offers = offers();
    let stage = Stage::build(claim, offers.clone())?;
    let load = Load::start(
        stage.client(),
        offers.iter().map(|offer| offer.vip).collect(),
    )?;
    let from = env::current_dir().context("the current directory")?;
    let hints = hints(&options.name, &offers[0], &binaries::find("lbctl")?, &from);
    let mut play = Play {
        began: Instant::now(),
        client: Client::new(stage.socket()).patience(PATIENCE),
        board: Board::new(&offers, hints),
        keys: Keys::default(),
        load,
        hand: Hand::start(stage),
        signals,
    };
    let mut show = Show::new(&play)?;
    let played = play
        .until(&mut show, options.seconds.map(Duration::from_secs))
        .await;
    drop(show);
    note("removing everything");
    let outcome = played.and_then(|()| play.judge(&options));
    let Play { load, hand, .. } = play;
    drop(load);
    hand.end()?;
    outcome
}

struct Play {
    began: Instant,
    client: Client,
    board: Board,
    keys: Keys,
    load: Load,
    hand: Hand,
    signals: Signals,
}

impl Play {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Until the user, a signal or the time ends it.
    async fn until(&mut self, show: &mut Show, limit: Option<Duration>) -> Result<()> {
        let mut ask = interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = limit.map(|limit| self.began + limit);
        loop {
            tokio::select! {
                () = self.signals.next() => return Ok(()),
                () = at(end) => return Ok(()),
                due = show.due() => {
                    if let Due::Event(event) = due
                        && self.event(event)?
                    {
                        return Ok(());
                    }
                    show.show(self)?;
                }
                attempt = self.load.next() => {
                    let attempt = attempt.context("the load generator has ended")?;
                    self.board.attempt(self.began.elapsed(), &attempt);
                }
                done = self.hand.next() => self.done(done)?,
                _ = ask.tick() => match self.client.services().await {
                    Ok(services) => self.board.services(self.began.elapsed(), services),
                    Err(_) => self.board.silent(self.began.elapsed()),
                },
            }
        }
    }

    /// Whether it asks to end.
    fn event(&mut self, event: Option<io::Result<Event>>) -> Result<bool> {
        // A terminal that was closed has no more events: there is nobody left to play.
        let Some(event) = event else { return Ok(true) };
        let Event::Key(key) = event.context("reading the terminal")? else {
            return Ok(false);
        };
        match self.keys.press(key) {
            Some(Action::Quit) => return Ok(true),
            Some(Action::Server(n)) => self.hand.order(Order::Server(n)),
            Some(Action::Drain(n)) => self.hand.order(Order::Drain(n, !self.board.drains(n))),
            Some(Action::Agent) => self.hand.order(Order::Agent),
            None => {}
        }
        Ok(false)
    }

    fn done(&mut self, done: Option<Result<String>>) -> Result<()> {
        let now = self.now();
        match done {
            Some(Ok(text)) => self.board.said(now, text, false),
            Some(Err(error)) => self.board.said(now, format!("{error:#}"), true),
            None => bail!("the thread that carries out orders has ended"),
        }
        Ok(())
    }

    /// What is left to be said and written at the end.
    fn judge(&self, options: &Options) -> Result<()> {
        if let Some(path) = &options.picture {
            let svg = picture::svg(&self.board.view(self.now()))?;
            fs::write(path, svg).with_context(|| format!("writing {}", path.display()))?;
        }
        let lacking = options.seconds.and_then(|_| self.board.lacking());
        ensure!(lacking.is_none(), "{}", lacking.unwrap_or_default());
        Ok(())
    }
}

/// Why something is to be shown.
enum Due {
    Event(Option<io::Result<Event>>),
    Tick,
}

/// Where the board is shown.
enum Show {
    Screen {
        terminal: DefaultTerminal,
        events: EventStream,
        ticks: Interval,
    },
    Lines {
        shown: Duration,
        ticks: Interval,
    },
}

impl Show {
    /// The terminal, where there is one; else lines, beginning with what to try.
    fn new(play: &Play) -> Result<Self> {
        if io::stdout().is_terminal() && io::stdin().is_terminal() {
            let terminal = ratatui::try_init().context("taking the terminal over")?;
            return Ok(Self::Screen {
                terminal,
                events: EventStream::new(),
                ticks: interval(FRAME),
            });
        }
        print(&lines::opening(&play.board.view(Duration::ZERO).hints))?;
        Ok(Self::Lines {
            shown: Duration::ZERO,
            // Before that there is nothing to tell.
            ticks: interval_at(Instant::now() + LINES, LINES),
        })
    }

    /// The next key or resize, or that it is time to show how things are.
    async fn due(&mut self) -> Due {
        match self {
            Self::Screen { events, ticks, .. } => tokio::select! {
                event = events.next() => Due::Event(event),
                _ = ticks.tick() => Due::Tick,
            },
            Self::Lines { ticks, .. } => {
                ticks.tick().await;
                Due::Tick
            }
        }
    }

    fn show(&mut self, play: &Play) -> Result<()> {
        let now = play.now();
        let view = play.board.view(now);
        match self {
            Self::Screen { terminal, .. } => {
                terminal
                    .draw(|frame| screen::draw(frame, &view))
                    .context("drawing")?;
            }
            Self::Lines { shown, .. } => {
                print(&(lines::lines(&view, *shown).join("\n") + "\n\n"))?;
                *shown = now;
            }
        }
        Ok(())
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        // A panic has done it before its message, which another time would paint over.
        if matches!(self, Self::Screen { .. }) && !thread::panicking() {
            // A terminal that was closed needs no restoring.
            drop(ratatui::try_restore());
        }
    }
}

/// The signals that ask to end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("writing to standard output")
}

/// Says what goes on, where anyone listens: the terminal may be gone.
fn note(text: &str) {
    drop(writeln!(io::stderr(), "playground: {text}"));
}
