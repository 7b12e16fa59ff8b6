//! README.md as a user follows it: every command in it is run, here or where this file says, and
//! its configuration is the one that they run with.

use std::{
    env, fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Decapsulator,
    backend::{Backend, PORT},
    binaries,
    bpffs::Bpffs,
    load::requests,
    process::{Process, run},
    skip::root_or_skip,
    topology::{Topology, vip_v4},
    wait::{wait_ok, wait_until},
};
use lb_userspace::instance;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);
/// The command that attaches to a NIC; `cargo xtask` then becomes `lbd run` with its arguments.
const ON_A_NIC: &str = "cargo xtask run -- ";
/// Commands that are not run here, and what runs them.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "cargo xtask run",
        "tests/playground.rs starts what it becomes",
    ),
    (
        "cargo xtask run -- --picture docs/playground.svg",
        "tests/playground.rs, with another file",
    ),
    ("cargo xtask test", "runs this test"),
    ("cargo xtask build", "made the programs that this test runs"),
    (
        "cargo xtask soak",
        "tests/soak.rs runs it with fewer connections and changes",
    ),
    ("cargo xtask soak --quick --format json", "tests/soak.rs"),
    (
        "cargo xtask soak --only weight,drain",
        "tests/soak.rs has both kinds among all others",
    ),
    (
        "cargo xtask fuzz",
        "its parts are tested in tests/src/fuzz.rs and compared in tests/differential.rs",
    ),
    (
        "cargo xtask coverage",
        "runs tests of this package and of lb-common; its own are in xtask/src/coverage",
    ),
    (
        "cargo xtask vm",
        "runs tests of this package; its own are in xtask/src/vm",
    ),
    (
        "cargo xtask bench checks",
        "`cargo xtask ci` runs it with --quick",
    ),
    (
        "cargo xtask bench packet",
        "`cargo xtask ci` runs it with --quick",
    ),
    (
        "cargo xtask bench packet --format json",
        "the same figures in another form, which its own tests read",
    ),
    (
        "cargo xtask bench packet --quick --filter \"tcp-v4 ipip\"",
        "a part of what `cargo xtask ci` runs",
    ),
    (
        "cargo xtask bench packet --group special",
        "a part of what `cargo xtask ci` runs",
    ),
    ("cargo xtask bench", "all of them, one after the other"),
    (
        "cargo xtask bench control",
        "`cargo xtask ci` runs it with --quick",
    ),
    (
        "cargo xtask bench control --quick --format json",
        "the same figures in another form, which its own tests read",
    ),
];

fn readme() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The text of every block that is marked as `language`.
fn blocks<'a>(markdown: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    let after = markdown.split(&opening).skip(1);
    after
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect()
}

/// The commands of a block, without their comments.
fn commands(block: &str) -> impl Iterator<Item = &str> {
    let bare = |line: &'_ str| -> usize { line.find(" #").unwrap_or(line.len()) };
    let lines = block.lines().map(move |line| line[..bare(line)].trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn is_elsewhere(command: &str) -> bool {
    ELSEWHERE.iter().any(|(known, _)| *known == command)
}

fn is_here(command: &str) -> bool {
    let here = ["lbctl ", "target/release/", ON_A_NIC];
    here.iter().any(|start| command.starts_with(start)) && !is_elsewhere(command)
}

#[test]
fn every_command_is_run_here_or_elsewhere() -> Result<()> {
    let readme = readme()?;
    let all: Vec<&str> = blocks(&readme, "sh")
        .into_iter()
        .flat_map(commands)
        .collect();
    assert!(all.len() >= 10, "only {all:?} were found");
    for command in &all {
        assert!(
            is_here(command) || is_elsewhere(command),
            "README.md says `{command}`, which no test runs: run it in this file, or name in \
             ELSEWHERE what does"
        );
    }
    for (command, _) in ELSEWHERE {
        assert!(
            all.contains(command),
            "README.md no longer says `{command}`: drop it here"
        );
    }
    Ok(())
}

#[test]
fn every_file_that_is_linked_to_exists() -> Result<()> {
    let readme = readme()?;
    let targets = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let files: Vec<&str> = targets.filter(|target| !target.contains("://")).collect();
    assert!(!files.is_empty());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for target in files {
        // A heading is looked up by whoever reads the file.
        let file = target.split('#').next().unwrap_or(target);
        assert!(root.join(file).exists(), "README.md links to {file}");
    }
    Ok(())
}

/// What a user has done by then: built, and written the configuration.
struct Desk {
    directory: TempDir,
    programs: PathBuf,
    bpffs: Bpffs,
}

impl Desk {
    fn new(configuration: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let lbd = binaries::find("lbd")?;
        let programs = lbd
            .parent()
            .context("a program in no directory")?
            .canonicalize()?;
        fs::create_dir(directory.path().join("target"))?;
        symlink(&programs, directory.path().join("target/release"))?;
        fs::write(directory.path().join("lb.toml"), configuration)?;
        Ok(Self {
            directory,
            programs,
            bpffs: Bpffs::unique()?,
        })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("lbd.sock")
    }

    /// The agent's.
    fn name() -> String {
        format!("readme-{}", process::id())
    }

    /// `line` for a shell in the user's directory, with the programs on the path. Only the socket is
    /// another, so that it meets no instance of the machine's own.
    fn set(&self, shell: &mut Command) -> Result<()> {
        let path = env::var("PATH").unwrap_or_default();
        shell
            .current_dir(self.directory.path())
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("LBCTL_SOCKET", self.socket());
        Ok(())
    }

    fn run(&self, line: &str) -> Result<String> {
        let mut shell = Command::new("sh");
        self.set(&mut shell)?;
        run(shell.args(["-c", line])).with_context(|| format!("README.md says `{line}`"))
    }

    /// Starts what the command `line` becomes, in the balancer's namespace, whose interface is
    /// called as in README.md; under a name, socket and pins of its own.
    fn start(&self, line: &str, topology: &Topology) -> Result<Process> {
        let arguments = line
            .strip_prefix(ON_A_NIC)
            .context("a command that attaches")?;
        let mut lbd = topology.balancer.command(self.programs.join("lbd"));
        self.set(&mut lbd)?;
        lbd.arg("run")
            .args(arguments.split_whitespace())
            .args(["--name", &Self::name(), "--socket"])
            .arg(self.socket())
            .arg("--bpffs")
            .arg(self.bpffs.path());
        let agent = Process::spawn("lbd", lbd)?;
        wait_ok("lbd is ready", SOON, || self.run("lbctl status"))
            .with_context(|| agent.log_tail())?;
        Ok(agent)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Everything else goes with the directory and the BPF file system.
        let name = Self::name();
        for kept in [instance::state_path(&name), instance::history_path(&name)] {
            drop(fs::remove_file(kept));
        }
    }
}

#[test]
fn the_configuration_is_checked_and_the_commands_do_what_they_say() -> Result<()> {
    if !root_or_skip("the_configuration_is_checked_and_the_commands_do_what_they_say") {
        return Ok(());
    }
    let readme = readme()?;
    let toml = blocks(&readme, "toml");
    ensure!(
        toml.len() == 1,
        "{} blocks of TOML: which is lb.toml?",
        toml.len()
    );
    let topology = Topology::new(3)?;
    let _servers = Backend::start_all(&topology)?;
    let vip: IpAddr = vip_v4(1).into();
    topology.accept_vips(&[vip])?;
    let tunnels: Result<Vec<_>> = topology.backends.iter().map(Decapsulator::attach).collect();
    let _tunnels = tunnels?;
    let desk = Desk::new(toml[0])?;
    let mut agent = None;
    for line in blocks(&readme, "sh").into_iter().flat_map(commands) {
        if is_here(line) && line.starts_with(ON_A_NIC) {
            agent = Some(desk.start(line, &topology)?);
        } else if is_here(line) {
            let said = desk.run(line)?;
            ensure!(!said.is_empty(), "`{line}` says nothing");
        }
    }
    ensure!(agent.is_some(), "README.md attaches to no NIC");

    // What they have done: backend1 drains and backend3 was added, which has a check to pass first.
    wait_until("backend3 has passed a check", SOON, || {
        let listed = desk.run("lbctl backend list 10.0.0.1:80/tcp");
        let up = |line: &str| line.contains("10.2.0.13:80") && line.contains(" up");
        listed.is_ok_and(|listed| listed.lines().any(up))
    })?;
    let report = requests(&topology.client, (vip, PORT).into(), 300)?;
    let answers = report.per_backend();
    assert_eq!(report.succeeded(), 300, "{:?}", report.failure_kinds());
    let names: Vec<&str> = answers.keys().map(String::as_str).collect();
    assert_eq!(names, ["backend2", "backend3"], "{answers:?}");
    assert!(answers["backend2"] > answers["backend3"], "{answers:?}");
    assert!(desk.run("lbctl service list")?.contains("10.0.0.2:80/tcp"));
    Ok(())
}

#[test]
fn commands_are_found_without_comments_and_other_blocks() {
    let text = "```sh\n# all of it\ncargo xtask run     # a playground\n\nlbctl status\n```\n```toml\na = 1\n```\n";
    let found: Vec<&str> = blocks(text, "sh").into_iter().flat_map(commands).collect();
    assert_eq!(found, ["cargo xtask run", "lbctl status"]);
    assert_eq!(blocks(text, "toml"), ["a = 1\n"]);
}
