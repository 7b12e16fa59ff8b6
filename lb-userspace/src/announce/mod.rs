//! Owns that neighbours hear where VIPs are: it announces them when they become this host's on a link, and hears who else claims
//! them. Never answers who asks, which is the program's, and never decides which VIPs are announced.
//!
//! `schedule` says what is announced when and `hearing` what is told of claims, both pure; `socket` sends and receives; the task
//! here joins them.

mod hearing;
mod schedule;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use self::{hearing::Hearing, schedule::Schedule, socket::Listener};
use crate::neighbours::Port;

pub use self::hearing::Conflict;

/// Conflicts that wait to be taken note of; more are counted with the next.
const WAITING: usize = 64;
/// Pause before a socket that could not be opened or read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Which VIPs are announced, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owned {
    /// The VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// The interfaces that the program is attached to, by index.
    pub ports: BTreeMap<u32, Port>,
    /// Hardware addresses of this host, of any interface.
    pub macs: BTreeSet<[u8; 6]>,
}

/// Announces VIPs for as long as it lives.
#[derive(Debug)]
pub struct Announcer {
    owned: watch::Sender<Owned>,
    again: mpsc::UnboundedSender<Option<IpAddr>>,
    task: AbortHandle,
}

impl Announcer {
    /// Starts in the network namespace of the calling thread, with nothing to announce. Nothing is opened until there is.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn() -> (Self, mpsc::Receiver<Conflict>) {
        let (owned, owns) = watch::channel(Owned::default());
        let (again, asked) = mpsc::unbounded_channel();
        let (conflicts, heard) = mpsc::channel(WAITING);
        let task = tokio::spawn(run(owns, asked, conflicts)).abort_handle();
        (Self { owned, again, task }, heard)
    }

    /// Says what is announced from now on; what is new is announced at once.
    pub fn own(&self, owned: Owned) {
        self.owned.send_if_modified(|before| {
            let changed = *before != owned;
            *before = owned;
            changed
        });
    }

    /// Announces a VIP once more, or all.
    pub fn again(&self, vip: Option<IpAddr>) {
        // The task lives as long as this does.
        let _ = self.again.send(vip);
    }
}

impl Announcer {
    /// One that says nothing.
    pub fn idle() -> Self {
        Self {
            owned: watch::channel(Owned::default()).0,
            again: mpsc::unbounded_channel().0,
            task: tokio::spawn(std::future::pending::<()>()).abort_handle(),
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut owns: watch::Receiver<Owned>,
    mut asked: mpsc::UnboundedReceiver<Option<IpAddr>>,
    conflicts: mpsc::Sender<Conflict>,
) {
    let mut schedule = Schedule::default();
    let mut hearing = Hearing::default();
    let mut listener = None;
    loop {
        let due = schedule.next();
        tokio::select! {
            changed = owns.changed() => {
                if changed.is_err() {
                    return;
                }
                let owned = owns.borrow_and_update().clone();
                listener = listen(listener, !owned.vips.is_empty());
                schedule.own(&owned, Instant::now());
                hearing.own(owned);
            }
            Some(vip) = asked.recv() => schedule.again(vip, Instant::now()),
            () = at(due) => send(&schedule.due(Instant::now())),
            heard = hear(&mut listener) => {
                if let Some(conflict) = hearing.hear(heard.interface, heard.claim, Instant::now()) {
                    // While nobody takes note, the next has to do.
                    let _ = conflicts.try_send(conflict);
                }
            }
        }
    }
}

/// Listens where it is wanted.
fn listen(listener: Option<Listener>, wanted: bool) -> Option<Listener> {
    match (listener, wanted) {
        (_, false) => None,
        (Some(listener), true) => Some(listener),
        (None, true) => Listener::open()
            .inspect_err(|error| tracing::warn!(%error, "nobody hears who else claims VIPs"))
            .ok(),
    }
}

/// The next claim, for ever if there is nobody to hear one.
async fn hear(listener: &mut Option<Listener>) -> socket::Heard {
    loop {
        let Some(open) = listener else {
            return std::future::pending().await;
        };
        match open.next().await {
            Ok(heard) => return heard,
            Err(error) => tracing::warn!(%error, "claims of VIPs cannot be read, trying again"),
        }
        sleep(RETRY).await;
    }
}

fn send(announcements: &[schedule::Announcement]) {
    for (announcement, error) in socket::send(announcements) {
        let (vip, interface) = (announcement.vip, announcement.interface);
        tracing::warn!(%vip, interface, %error, "the VIP cannot be announced");
    }
}

/// Waits until `due`, or for ever.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
