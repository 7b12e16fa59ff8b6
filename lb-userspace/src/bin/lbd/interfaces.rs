//! The interfaces of `lbd run`: attached to at the start, and attached to again where one is replaced
//! by another of its name, such as a restarted container's or a VLAN's that was set up anew.
//!
//! How a program is attached is the library's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_userspace::{
    bonds,
    dataplane::{
        DataplaneError,
        bpf::{Held, Mode, Program},
    },
    snapshot::InterfaceStatus,
};
use nix::net::if_::if_nametoindex;

use crate::args::Attach;

/// How often interfaces are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Refuses interfaces that are not there.
pub fn check(interfaces: &BTreeSet<String>) -> Result<()> {
    if interfaces.is_empty() {
        bail!(
            "no interface to attach to: give --interface NIC, or `interfaces` in the configuration"
        );
    }
    for interface in interfaces {
        if_nametoindex(interface.as_str())
            .with_context(|| format!("there is no interface {interface}"))?;
    }
    Ok(())
}

/// Holds the program, and sees to it that every interface has it.
pub struct Attendant {
    program: Arc<Mutex<Program>>,
    mode: Attach,
    /// What is attended: interfaces, and bonds, which are attached to by their members.
    wanted: BTreeSet<String>,
    /// The index that each interface was attached to by; none while it is not attached to.
    indices: BTreeMap<String, Option<u32>>,
}

/// The interfaces are looked after while this lives.
pub struct Watch {
    _end: Sender<()>,
}

impl Attendant {
    pub fn new(program: Arc<Mutex<Program>>, mode: Attach) -> Self {
        Self {
            program,
            mode,
            wanted: BTreeSet::new(),
            indices: BTreeMap::new(),
        }
    }

    fn program(&self) -> MutexGuard<'_, Program> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches to the interfaces, and changes the services in between: a new interface may refuse the
    /// program, in which case nothing has changed. One that has a former agent's program gets this one before the change,
    /// which may need what that one is not loaded for; or, if its maps are of another format, once these hold what it
    /// needs.
    pub fn bring_up(
        &mut self,
        interfaces: &BTreeSet<String>,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<InterfaceStatus>> {
        self.wanted.clone_from(interfaces);
        let interfaces = &by_members(interfaces)?;
        for bond in self.wanted.difference(interfaces) {
            // Its members do not take a program while it has one itself.
            self.program().let_go(bond)?;
            tracing::info!(%bond, "attached to by its members");
        }
        let mut attached = BTreeMap::new();
        let mut wanted: Vec<(Held, &String)> = Vec::new();
        for interface in interfaces {
            wanted.push((self.program().held(interface)?, interface));
        }
        wanted.sort_unstable();
        let others = wanted.partition_point(|(held, _)| *held < Held::OtherFormat);
        let (first, last) = wanted.split_at(others);
        for &(_, interface) in first {
            attached.insert(interface, self.attach(interface, Program::attach)?);
        }
        change()?;
        for &(_, interface) in last {
            attached.insert(interface, self.attach(interface, Program::attach)?);
        }
        self.program().keep_only(interfaces)?;
        let status = |(name, mode): (&String, Mode)| InterfaceStatus {
            name: name.clone(),
            mode: mode.name(),
        };
        Ok(attached.into_iter().map(status).collect())
    }

    fn attach(&mut self, interface: &str, attach: How) -> Result<Mode> {
        // Asked before: if it is replaced meanwhile, the next look will tell.
        let index = if_nametoindex(interface)
            .with_context(|| format!("there is no interface {interface}"))?;
        let got = attach(&mut self.program(), interface, modes(self.mode))?;
        self.indices.insert(interface.to_owned(), Some(index));
        if got == Mode::Generic && self.mode == Attach::Auto {
            tracing::warn!(%interface, "no native XDP: attached in generic mode, which is several times slower");
        }
        tracing::info!(%interface, mode = got.name(), "attached");
        Ok(got)
    }

    /// Looks after the interfaces, on a thread of its own as the kernel may take its time.
    pub fn watch(mut self) -> Watch {
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                self.look();
            }
        });
        Watch { _end: end }
    }

    fn look(&mut self) {
        self.follow_members();
        for (interface, known) in self.indices.clone() {
            let index = if_nametoindex(interface.as_str()).ok();
            if index == known {
                continue;
            }
            if index.is_none() {
                tracing::error!(%interface, "the interface is gone: nothing that comes by it is balanced until it is back");
                self.indices.insert(interface, None);
            } else if let Err(error) = self.attach(&interface, Program::attach_anew) {
                tracing::error!(%interface, "not attached to the new interface, trying again: {error:#}");
            }
        }
    }
}

impl Attendant {
    /// Attends what has joined a bond, and leaves what has left one.
    fn follow_members(&mut self) {
        let now = match by_members(&self.wanted) {
            Ok(now) => now,
            Err(error) => return tracing::warn!("the members of a bond are not known: {error:#}"),
        };
        for interface in &now {
            if !self.indices.contains_key(interface) {
                tracing::info!(%interface, "a bond has a new member");
                self.indices.insert(interface.clone(), None);
            }
        }
        let left: Vec<String> = self
            .indices
            .keys()
            .filter(|name| !now.contains(*name))
            .cloned()
            .collect();
        for interface in left {
            self.indices.remove(&interface);
            match self.program().let_go(&interface) {
                Ok(()) => {
                    tracing::info!(%interface, "detached: it is no member of a bond any more")
                }
                Err(error) => {
                    tracing::error!(%interface, "still attached, though no member of a bond any more: {error}")
                }
            }
        }
    }
}

/// Interfaces, and in the place of bonds, their members.
fn by_members(wanted: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let mut interfaces = BTreeSet::new();
    for name in wanted {
        let members = bonds::members(name)
            .with_context(|| format!("reading the members of the bond {name}"))?;
        match members {
            Some(members) => interfaces.extend(members),
            None => drop(interfaces.insert(name.clone())),
        }
    }
    Ok(interfaces)
}

type How = fn(&mut Program, &str, &[Mode]) -> Result<Mode, DataplaneError>;

fn modes(mode: Attach) -> &'static [Mode] {
    match mode {
        Attach::Auto => &[Mode::Native, Mode::Generic],
        Attach::Native => &[Mode::Native],
        Attach::Generic => &[Mode::Generic],
    }
}
