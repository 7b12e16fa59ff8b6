//! Fragments that come before the first of their datagram: the program hands them over, and gets them back once
//! it knows where they go, or when their time has run out. Who waits for how long is [`Holder`]'s; here is only
//! the task that carries it out, beside the agent's loop and without a part in it.

mod holder;

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use lb_common::memory::HeldFrame;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

pub use holder::Holder;

use crate::dataplane::bpf::{EarlyFragments, Program};

/// Fragments taken at once before those that are due have their turn.
const BATCH: usize = 64;

/// The task; it ends when this is dropped.
#[derive(Debug)]
pub struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to hold what `early` hands over, within a runtime.
///
/// # Errors
/// The ring cannot be watched.
pub fn keep(early: EarlyFragments, program: Arc<Mutex<Program>>) -> io::Result<Keeper> {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe code; the ring owns its descriptor"
    )]
    let early = AsyncFd::with_interest(early, Interest::READABLE)?;
    let mut keeping = Keeping {
        early,
        program,
        holder: Holder::default(),
        is_told: false,
    };
    Ok(Keeper(tokio::spawn(async move { keeping.run().await })))
}

struct Keeping {
    early: AsyncFd<EarlyFragments>,
    program: Arc<Mutex<Program>>,
    holder: Holder,
    /// Whether a failure has been told: there may be many alike.
    is_told: bool,
}

impl Keeping {
    async fn run(&mut self) {
        loop {
            let due = self.holder.deadline();
            tokio::select! {
                ready = self.early.readable_mut() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(error) => {
                        tracing::error!(%error, "fragments that come too early are lost");
                        return pending().await;
                    }
                },
                () = until(due) => {}
            }
            self.take();
            self.look(Instant::now());
        }
    }

    /// Takes everything that is there; what there is no room for goes back at once.
    fn take(&mut self) {
        loop {
            let mut taken = 0;
            while taken < BATCH
                && let Some(frame) = self.early.get_mut().take_frame()
            {
                taken += 1;
                if let Some(refused) = self.holder.hold(Instant::now(), frame) {
                    self.give_back(&[refused]);
                }
            }
            if taken < BATCH {
                return;
            }
            self.look(Instant::now());
        }
    }

    fn look(&mut self, now: Instant) {
        for key in self.holder.due(now) {
            let known = self.early.get_ref().is_known(&key).unwrap_or_else(|error| {
                self.is_told = tell(self.is_told, &error);
                false
            });
            let frames = self.holder.look(now, &key, known);
            self.give_back(&frames);
        }
    }

    fn give_back(&mut self, frames: &[HeldFrame]) {
        if frames.is_empty() {
            return;
        }
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        for frame in frames {
            if let Err(error) = program.give_back(frame) {
                self.is_told = tell(self.is_told, &error);
            }
        }
    }
}

/// Says once that fragments are lost.
fn tell(is_told: bool, error: &dyn std::error::Error) -> bool {
    if !is_told {
        tracing::warn!(%error, "fragments that come before the first of their datagram are lost");
    }
    true
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
