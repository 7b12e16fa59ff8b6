//! The playground as a user meets it: started in a pseudo terminal, read off its screen, tried with
//! the commands that it shows, and ended.

use std::{
    fs,
    io::{Read as _, Write},
    num::NonZero,
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    binaries, netns,
    playground::claim::files,
    process::run,
    skip::root_or_skip,
    topology::Turn,
    wait::{wait_for, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};

const SIZE: PtySize = PtySize {
    rows: 40,
    cols: 180,
    pixel_width: 0,
    pixel_height: 0,
};
/// Until it is up, or gone: bounds what can be awaited, and judges nothing.
const LONG: Duration = Duration::from_secs(60);
const SERVICES: [&str; 10] = [
    "nat v4",
    "nat v6",
    "ipip 4in4",
    "ipip 6in6",
    "ipip 4in6",
    "ipip 6in4",
    "gue 4in4",
    "gue 6in6",
    "l2 v4",
    "l2 v6",
];

/// A name that no other test's playground has, and whose namespaces the next run sweeps.
fn name() -> String {
    format!("lb-{}-{}", process::id(), netns::next_number())
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A playground in a pseudo terminal.
struct Played {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Played {
    fn start(name: &str) -> Result<Self> {
        let pair = native_pty_system().openpty(SIZE)?;
        let mut command = CommandBuilder::new(binaries::find("playground")?);
        command.args(["--name", name]);
        command.cwd(checkout().canonicalize()?);
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command)?;
        let cells = |size| NonZero::new(size).context("a terminal without cells");
        let parser = vt100::Parser::new(cells(SIZE.rows)?, cells(SIZE.cols)?, 0);
        let screen = Arc::new(Mutex::new(parser));
        let (mut reader, shown) = (pair.master.try_clone_reader()?, Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails once nobody has the terminal open any more.
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                lock(&shown).process(&bytes[..length]);
            }
        });
        Ok(Self {
            child,
            keys: pair.master.take_writer()?,
            master: pair.master,
            screen,
        })
    }

    /// Starts one and waits until every server has answered for every service.
    fn ready(name: &str) -> Result<Self> {
        let played = Self::start(name)?;
        played.await_screen("every server answers for every service", |text| {
            SERVICES.iter().all(|service| {
                let row = row(text, service);
                row.matches('●').count() == 3
                    && row.matches('%').count() == 3
                    && !row.contains(" 0%")
            })
        })?;
        Ok(played)
    }

    fn text(&self) -> String {
        lock(&self.screen).screen().contents()
    }

    fn await_screen(&self, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(what, LONG, || holds(&self.text()))
            .with_context(|| format!("the screen shows\n{}", self.text()))
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    /// The command that the screen shows after `word`.
    fn command(&self, word: &str) -> Result<String> {
        let text = self.text();
        let shown = text
            .lines()
            .map(str::trim)
            .filter_map(|line| line.strip_prefix(word));
        let command = shown.map(str::trim).find(|rest| rest.contains("lb"));
        Ok(command
            .with_context(|| format!("no `{word}` in\n{text}"))?
            .to_owned())
    }

    /// Pastes that command into a shell.
    fn paste(&self, word: &str) -> Result<String> {
        let command = self.command(word)?;
        run(Command::new("sh")
            .args(["-c", &command])
            .current_dir(checkout()))
    }

    fn pid(&self) -> Result<u32> {
        self.child.process_id().context("it has ended")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?.cast_signed()), signal)?)
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let ended = wait_for("its end", LONG, || self.child.try_wait().transpose());
        Ok(ended.with_context(|| self.text())??)
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        // After a failure only: give it the chance to clean up, then insist.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.signal(Signal::SIGTERM));
            if self.end().is_err() {
                drop(self.child.kill());
            }
        }
    }
}

/// The row of a service.
fn row<'a>(text: &'a str, service: &str) -> &'a str {
    text.lines()
        .find(|line| line.trim().starts_with(service))
        .unwrap_or_default()
}

/// Everything of the playground called `name` that is there, made by the process `pid`.
fn left(name: &str, pid: u32) -> Vec<String> {
    let namespaces = netns::all()
        .into_iter()
        .filter(|namespace| namespace.starts_with(&format!("{name}-")));
    let mounts = fs::read_dir("/run").into_iter().flatten().flatten();
    let mounts = mounts.map(|entry| entry.path().display().to_string());
    let mounts = mounts.filter(|path| path.starts_with(&format!("/run/lb-test-{pid}-")));
    let files = files(name).filter(|file| file.exists());
    let files = files.map(|file| file.display().to_string());
    namespaces.chain(mounts).chain(files).collect()
}

/// The processes inside its namespaces.
fn inside(name: &str) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for namespace in netns::all() {
        if namespace.starts_with(&format!("{name}-")) {
            let listed = run(Command::new("ip").args(["netns", "pids", &namespace]))?;
            pids.extend(
                listed
                    .lines()
                    .filter_map(|pid| pid.trim().parse::<u32>().ok()),
            );
        }
    }
    Ok(pids)
}

fn ensure_nothing_left(name: &str, pid: u32, processes: &[u32]) -> Result<()> {
    let left = left(name, pid);
    ensure!(left.is_empty(), "{left:?} are left");
    // 3 nginx masters and workers, and lbd.
    ensure!(processes.len() >= 7, "only {processes:?} were there");
    // Workers are nobody's children once their master is killed: init collects them when it likes.
    wait_until("every process is gone", LONG, || {
        processes.iter().all(|&pid| netns::is_gone(pid))
    })
}

/// Runs it where there is no terminal.
fn without_terminal(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binaries::find("playground")?);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .current_dir(checkout());
    Ok(command.output()?)
}

/// The bytes that Ctrl-C sends.
const CONTROL_C: &str = "\x03";

#[test]
fn the_screen_follows_the_commands_that_it_shows() -> Result<()> {
    if !root_or_skip("the_screen_follows_the_commands_that_it_shows") {
        return Ok(());
    }
    let _turn = Turn::Shared.take()?;
    let name = name();
    let mut played = Played::ready(&name)?;
    assert!(played.paste("ask")?.starts_with("backend"));
    assert!(played.paste("list")?.contains("10.2.0.13:80"));

    played.paste("drain")?;
    played.await_screen("backend1 drains", |text| {
        text.contains("backend1 drains in nat v4") && row(text, "nat v4").contains("◐ draining")
    })?;
    played.paste("weigh")?;
    played.await_screen("backend3 has a weight", |text| {
        text.contains("backend3 has weight 3 in nat v4") && row(text, "nat v4").contains("w3")
    })?;
    assert!(!row(&played.text(), "nat v6").contains("w3"));

    played.paste("kill  ")?;
    played.await_screen("backend2 is down", |text| {
        text.contains("backend2 is down in every service")
            && SERVICES
                .iter()
                .all(|service| row(text, service).contains("✖ down"))
    })?;
    played.press("2")?;
    played.await_screen("backend2 is up again", |text| {
        text.contains("backend2 is up in every service") && !text.contains('✖')
    })?;
    played.press("d3")?;
    played.await_screen("backend3 drains", |text| {
        text.contains("backend3 drains in every service")
    })?;
    played.press("q")?;
    assert!(played.end()?.success());
    Ok(())
}

#[test]
fn the_agent_can_be_killed_and_requests_are_answered_all_the_same() -> Result<()> {
    if !root_or_skip("the_agent_can_be_killed_and_requests_are_answered_all_the_same") {
        return Ok(());
    }
    let _turn = Turn::Shared.take()?;
    let name = name();
    let mut played = Played::ready(&name)?;
    played.paste("kill lbd")?;
    played.await_screen("lbd is dead", |text| text.contains("lbd is dead"))?;
    assert!(played.paste("ask")?.starts_with("backend"));
    played.press("a")?;
    played.await_screen("lbd runs again", |text| text.contains("● lbd runs"))?;
    played.press("q")?;
    assert!(played.end()?.success());
    Ok(())
}

#[test]
fn however_it_is_ended_the_terminal_is_restored_and_nothing_is_left() -> Result<()> {
    if !root_or_skip("however_it_is_ended_the_terminal_is_restored_and_nothing_is_left") {
        return Ok(());
    }
    let _turn = Turn::Shared.take()?;
    for way in ["Ctrl-C", "SIGTERM", "SIGHUP"] {
        let name = name();
        let mut played = Played::ready(&name)?;
        assert!(lock(&played.screen).screen().alternate_screen(), "{way}");
        let (pid, processes) = (played.pid()?, inside(&name)?);
        match way {
            "SIGTERM" => played.signal(Signal::SIGTERM)?,
            "SIGHUP" => played.signal(Signal::SIGHUP)?,
            _ => played.press(CONTROL_C)?,
        }
        assert!(played.end()?.success(), "{way}: {}", played.text());
        ensure_nothing_left(&name, pid, &processes)?;
        let restored = || {
            let parser = lock(&played.screen);
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        };
        wait_until("the terminal is restored", LONG, restored).context(way)?;
        let cooked = played.master.get_termios().context("terminal attributes")?;
        assert!(cooked.local_flags.bits() & libc::ICANON != 0, "{way}");
        assert!(cooked.local_flags.bits() & libc::ECHO != 0, "{way}");
    }
    Ok(())
}

#[test]
fn a_second_playground_is_refused_and_leaves_the_first_alone() -> Result<()> {
    if !root_or_skip("a_second_playground_is_refused_and_leaves_the_first_alone") {
        return Ok(());
    }
    let _turn = Turn::Shared.take()?;
    let name = name();
    let mut played = Played::ready(&name)?;
    let refused = without_terminal(&["--name", &name])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("the playground `{name}` runs already")),
        "{said}"
    );
    assert!(said.contains("--name NAME"), "{said}");
    assert!(played.paste("ask")?.starts_with("backend"));
    played.press(CONTROL_C)?;
    assert!(played.end()?.success());
    Ok(())
}

#[test]
fn namespaces_of_someone_else_are_refused_and_left_alone() -> Result<()> {
    if !root_or_skip("namespaces_of_someone_else_are_refused_and_left_alone") {
        return Ok(());
    }
    let name = name();
    let foreign = netns::Namespace::named(&format!("{name}-client"))?;
    let refused = without_terminal(&["--name", &name])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("{name}-client")) && said.contains("ip netns del"),
        "{said}"
    );
    assert!(netns::exists(foreign.name()));
    Ok(())
}

#[test]
fn what_a_killed_playground_left_is_swept_by_the_next() -> Result<()> {
    if !root_or_skip("what_a_killed_playground_left_is_swept_by_the_next") {
        return Ok(());
    }
    let _turn = Turn::Shared.take()?;
    let name = name();
    let mut played = Played::ready(&name)?;
    let (pid, processes) = (played.pid()?, inside(&name)?);
    played.signal(Signal::SIGKILL)?;
    played.end()?;
    assert!(!left(&name, pid).is_empty());
    let mut next = Played::ready(&name)?;
    let next_pid = next.pid()?;
    next.press(CONTROL_C)?;
    assert!(next.end()?.success());
    ensure_nothing_left(&name, pid, &processes)?;
    assert!(left(&name, next_pid).is_empty());
    Ok(())
}

#[test]
fn without_a_terminal_it_prints_lines_and_ends_when_told() -> Result<()> {
    if !root_or_skip("without_a_terminal_it_prints_lines_and_ends_when_told") {
        return Ok(());
    }
    let _turn = Turn::Shared.take()?;
    let name = name();
    let directory = tempfile::tempdir()?;
    let picture = directory.path().join("playground.svg");
    let picture = picture.to_str().context("a path that is no text")?;
    let ended = without_terminal(&["--name", &name, "--for", "5", "--picture", picture])?;
    let (said, errors) = (
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
    );
    assert!(ended.status.success(), "{said}{errors}");
    assert!(
        said.contains(&format!(
            "ip netns exec {name}-client curl http://10.0.0.1/"
        )),
        "{said}"
    );
    for service in SERVICES {
        let row = row(&said, service);
        assert!(
            row.contains("backend3 up") && row.contains("failed"),
            "{said}"
        );
    }
    assert!(!said.contains('\x1b'), "{said}");
    let svg = fs::read_to_string(picture)?;
    assert!(
        svg.starts_with("<svg") && svg.contains("10.0.0.1:80"),
        "{svg}"
    );
    let namespaces = netns::all();
    assert!(
        !namespaces
            .iter()
            .any(|namespace| namespace.starts_with(&name)),
        "{namespaces:?}"
    );
    assert_eq!(files(&name).filter(|file| file.exists()).count(), 0);
    Ok(())
}
