//! Network namespaces: made with a unique name, entered by setns(2), and deleted with every
//! process inside on drop. Never says what stands inside; that is [`crate::topology`]'s.
//!
//! Namespaces are entered in-process instead of through `ip netns exec`, whose private mounts
//! would take BPF pins with them. The only file of the harness with `unsafe`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    panic,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process::run;

/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";
/// Begins the name of every namespace of a test, followed by the process's id.
const PREFIX: &str = "lb-";

static SWEEP: Once = Once::new();

/// A network namespace. Clones are the same namespace; it is deleted with the last of them.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    handle: File,
}

impl Namespace {
    /// A namespace of its own, named after this process and `role`, with `lo` up.
    ///
    /// # Errors
    /// It cannot be made, mostly for want of root.
    pub fn unique(role: &str) -> Result<Self> {
        SWEEP.call_once(sweep_stale);
        Self::named(&format!(
            "{PREFIX}{}-{}-{role}",
            process::id(),
            next_number()
        ))
    }

    /// A namespace called `name`, with `lo` up.
    ///
    /// # Errors
    /// It exists already or cannot be made.
    pub fn named(name: &str) -> Result<Self> {
        if exists(name) {
            bail!("network namespace {name} exists already");
        }
        run(Command::new("ip").args(["netns", "add", name]))?;
        let path = path_of(name);
        let handle = File::open(&path).with_context(|| path.display().to_string())?;
        let namespace = Self(Arc::new(Inner {
            name: name.to_owned(),
            handle,
        }));
        run(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let inner = Arc::clone(&self.0);
        let enter = move || Ok(setns(&inner.handle, CloneFlags::CLONE_NEWNET)?);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call, setns(2), on a
        // descriptor that it keeps open itself; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `work` on a thread inside and returns its value; its panic goes on here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let joined = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
        });
        joined.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// Starts `work` on a thread inside. The namespace lives until the thread ends.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.enter();
            work()
        })
    }

    /// Writes sysctls of the namespace, given as paths below `/proc/sys`.
    ///
    /// # Errors
    /// The first that the kernel lacks or refuses.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (path, value) in settings {
                let file = Path::new("/proc/sys").join(path);
                fs::write(&file, value)
                    .with_context(|| format!("writing {value} to {}", file.display()))?;
            }
            Ok(())
        })
    }

    /// Sends `signal` to every process whose main thread is inside, this one excepted.
    pub fn signal(&self, signal: Signal) {
        signal_inside(&self.0.handle, signal);
    }

    /// Moves the calling thread inside, for good.
    fn enter(&self) {
        setns(&self.0.handle, CloneFlags::CLONE_NEWNET).expect("entering an open namespace");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        signal_inside(&self.handle, Signal::SIGKILL);
        if let Err(error) = delete(&self.name) {
            eprintln!("network namespace {} stays behind: {error:#}", self.name);
        }
    }
}

/// Whether a namespace of this name exists.
pub fn exists(name: &str) -> bool {
    path_of(name).exists()
}

/// Names of all namespaces.
pub fn all() -> Vec<String> {
    // The directory is missing until the first namespace is made: then there are none.
    fs::read_dir(NETNS_DIR)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Kills every process inside the namespace called `name` and deletes it.
///
/// # Errors
/// There is no such namespace, or it cannot be deleted.
pub fn remove(name: &str) -> Result<()> {
    let path = path_of(name);
    let handle = File::open(&path).with_context(|| path.display().to_string())?;
    signal_inside(&handle, Signal::SIGKILL);
    delete(name)
}

/// A number that no other call in this process gets.
pub fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The process id in a name made of `prefix`, the id, and a dash.
pub fn owner_of(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split_once('-')?.0.parse().ok()
}

/// Whether the process that made something is gone, so that nobody will clean up after it.
pub fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

fn delete(name: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "del", name])).map(drop)
}

/// Removes namespaces of processes that died without cleaning up. Done once before the first is made.
pub fn sweep_stale() {
    for name in all() {
        if owner_of(&name, PREFIX).is_some_and(is_gone) {
            // Another process may be sweeping the same one: whoever is second finds it gone.
            drop(remove(&name));
        }
    }
}

/// Sends `signal` to every process whose main thread is inside, this one excepted.
fn signal_inside(handle: &File, signal: Signal) {
    let Ok(inside) = handle.metadata() else {
        return;
    };
    for pid in processes() {
        let same = fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|its| (its.dev(), its.ino()) == (inside.dev(), inside.ino()));
        if same && pid != Pid::this() {
            // It may have ended meanwhile.
            let _ = kill(pid, signal);
        }
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries: io::Result<fs::ReadDir> = fs::read_dir("/proc");
    entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_process_id_have_an_owner() {
        assert_eq!(owner_of("lb-123-4-client", PREFIX), Some(123));
        assert_eq!(owner_of("lb-client", PREFIX), None);
        assert_eq!(owner_of("lb-backend1", PREFIX), None);
        assert_eq!(owner_of("other-123-4", PREFIX), None);
    }

    #[test]
    fn a_running_process_is_not_gone() {
        assert!(!is_gone(process::id()));
    }
}
