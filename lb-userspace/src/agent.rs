//! The agent's one loop, the sole writer of the maps, and the handle through which others ask it.
//!
//! What it decides is in `core`, which is synchronous and runs over any dataplane; here is only
//! who is listened to, and in which order.

pub mod adaptive;
mod core;
pub mod damping;
pub mod history;
pub mod journal;
pub mod outlier;
pub mod panic;
pub mod ramp;
mod run;
pub mod tiers;

pub use self::core::{Core, Teller};
pub use self::run::{Sources, run};

use std::{collections::BTreeSet, net::IpAddr};

use tokio::sync::{mpsc, oneshot};

use crate::{
    health::{Target, heartbeat::Whose, reports::Reports},
    model::{AccessList, Change, ModelError, Service, ServiceId},
    plan::PlanError,
    snapshot::{ClientList, EventFilter, EventList, FlowFilter, FlowList, ServiceStatus, Snapshot},
};

/// Why a change did not take effect. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The change itself is wrong.
    #[error(transparent)]
    Refused(#[from] ModelError),
    /// The tables have no room, or a backend is not free yet; says what would help.
    #[error("{0}")]
    NoRoom(String),
    /// Flows whose backends live would be forgotten.
    #[error("{0}")]
    Forgets(String),
    /// The programs in the kernel are not loaded for what it needs: bits of [`lb_common::tables::feature`].
    #[error(
        "the programs in the kernel are not loaded for what the change needs (features {0:#x})"
    )]
    NotLoaded(u32),
    /// The kernel refused.
    #[error("the kernel refused the change: {0}")]
    Kernel(String),
    /// A backend says that it has no flows left, and that cannot be.
    #[error("{0}")]
    NotDrained(String),
    /// The agent is stopping.
    #[error("the agent is stopping; try again once it runs")]
    Stopping,
}

impl From<PlanError> for ChangeError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Forgets { .. } => Self::Forgets(error.to_string()),
            _ => Self::NoRoom(error.to_string()),
        }
    }
}

/// An access list and the services that have it.
pub type Listed = (AccessList, Vec<ServiceId>);

/// What is announced, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// Names of interfaces.
    pub interfaces: BTreeSet<String>,
}

/// What the loop is asked.
#[derive(Debug)]
pub enum Request {
    /// Apply a change; answered once it is in force in the kernel.
    Change(Box<Change>, oneshot::Sender<Result<(), ChangeError>>),
    /// Describe yourself.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Describe one service.
    Service(ServiceId, oneshot::Sender<Option<ServiceStatus>>),
    /// Every access list, and the services that have it.
    AccessLists(oneshot::Sender<Vec<Listed>>),
    /// What is wanted of the first service of a group.
    Group(String, oneshot::Sender<Option<Service>>),
    /// A backend reports by itself that is not known to: what is wrong with that.
    Beat(Target, oneshot::Sender<Result<(), ChangeError>>),
    /// A backend says that it has no flow left.
    Drained(Target, oneshot::Sender<Result<(), ChangeError>>),
    /// Announce a VIP once more, or all; which are, and where.
    Announce(
        Option<IpAddr>,
        oneshot::Sender<Result<Announced, ChangeError>>,
    ),
    /// List recorded flows.
    Flows(FlowFilter, oneshot::Sender<Result<FlowList, ChangeError>>),
    /// What has happened lately.
    Events(EventFilter, oneshot::Sender<EventList>),
    /// List the clients that are remembered.
    Clients(FlowFilter, oneshot::Sender<Result<ClientList, ChangeError>>),
}

/// Asks the agent's loop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    reports: Reports,
}

impl Handle {
    /// A handle and the receiving end for the loop.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(64);
        let reports = Reports::default();
        (Self { requests, reports }, receiver)
    }

    /// The same, that passes beats on by `reports`.
    #[must_use]
    pub fn reporting(self, reports: Reports) -> Self {
        Self { reports, ..self }
    }

    /// Applies `change`; returns once it is in force in the kernel.
    ///
    /// # Errors
    /// Why it was refused; nothing changed then.
    pub async fn change(&self, change: Change) -> Result<(), ChangeError> {
        self.ask(|reply| Request::Change(Box::new(change), reply))
            .await?
    }

    /// Takes note that a backend reports by itself.
    ///
    /// # Errors
    /// It is not there, or is not checked so.
    pub async fn beat(&self, target: Target) -> Result<(), ChangeError> {
        if self.reports.beat(&target) {
            return Ok(());
        }
        self.ask(|reply| Request::Beat(target, reply)).await?
    }

    /// Takes note that a backend has no flow left, as it says itself.
    ///
    /// # Errors
    /// It is not there, or may have flows again at any time.
    pub async fn drained(&self, target: Target) -> Result<(), ChangeError> {
        self.ask(|reply| Request::Drained(target, reply)).await?
    }

    /// Announces a VIP once more, or all; which are, and where.
    ///
    /// # Errors
    /// It is not one that is announced.
    pub async fn announce(&self, vip: Option<IpAddr>) -> Result<Announced, ChangeError> {
        self.ask(|reply| Request::Announce(vip, reply)).await?
    }

    /// Takes note that a datagram from `sender` reports backends there; nobody is answered.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`].
    pub fn beat_from(&self, sender: IpAddr, whose: Whose) -> Result<(), ChangeError> {
        if self.requests.is_closed() {
            return Err(ChangeError::Stopping);
        }
        if self.reports.beat_from(sender, whose) == 0 {
            tracing::debug!(%sender, ?whose, "a heartbeat of nobody");
        }
        Ok(())
    }

    /// Recorded flows.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`], or the kernel's tables cannot be read.
    pub async fn flows(&self, filter: FlowFilter) -> Result<FlowList, ChangeError> {
        self.ask(|reply| Request::Flows(filter, reply)).await?
    }

    /// Clients that are remembered for persistence.
    ///
    /// # Errors
    /// As [`Handle::flows`].
    pub async fn clients(&self, filter: FlowFilter) -> Result<ClientList, ChangeError> {
        self.ask(|reply| Request::Clients(filter, reply)).await?
    }

    /// What has happened lately.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`].
    pub async fn events(&self, filter: EventFilter) -> Result<EventList, ChangeError> {
        self.ask(|reply| Request::Events(filter, reply)).await
    }

    /// The agent as it stands.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`].
    pub async fn snapshot(&self) -> Result<Snapshot, ChangeError> {
        self.ask(Request::Snapshot).await
    }

    /// One service as it stands, where it is there.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`].
    pub async fn service(&self, id: ServiceId) -> Result<Option<ServiceStatus>, ChangeError> {
        self.ask(|reply| Request::Service(id, reply)).await
    }

    /// Every access list, and the services that have it.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`].
    pub async fn access_lists(&self) -> Result<Vec<Listed>, ChangeError> {
        self.ask(Request::AccessLists).await
    }

    /// What is wanted of the first service of a group, where there is one.
    ///
    /// # Errors
    /// [`ChangeError::Stopping`].
    pub async fn group(&self, name: String) -> Result<Option<Service>, ChangeError> {
        self.ask(|reply| Request::Group(name, reply)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, ChangeError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply)).await;
        sent.map_err(|_| ChangeError::Stopping)?;
        answer.await.map_err(|_| ChangeError::Stopping)
    }
}
