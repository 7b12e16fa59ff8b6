//! Network namespaces for tests: made, entered and removed, also after a panic.

use std::{
    fs::File,
    future::Future,
    io::Write as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Whether namespaces can be made; says so where they cannot.
pub fn available(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    crate::skip::skip(test, "needs root");
    false
}

/// A network namespace, there until it is dropped.
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lbt-{}-{n}-{role}", std::process::id());
        run(&format!("netns add {name}"));
        Self { name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside with these arguments, each set on a line of its own.
    pub fn ip(&self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            run(&format!("-n {} {line}", self.name));
        }
    }

    /// Runs `ip -batch` inside with these commands.
    pub fn ip_batch(&self, commands: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(commands.as_bytes()).unwrap();
        run(&format!(
            "-n {} -batch {}",
            self.name,
            file.path().display()
        ));
    }

    /// Runs `work` inside, on a thread and a runtime of its own.
    pub fn enter<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let inside = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(work())
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn run(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}
