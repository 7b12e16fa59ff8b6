//! Why the model refuses. The texts reach users as they are.

use std::net::{IpAddr, SocketAddr};

use super::{ServerId, ServiceId};

/// Why a state or change was refused. The texts say what was wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not of the form `ADDRESS:PORT/PROTOCOL`.
    #[error(
        "`{text}` is not a service: write ADDRESS:PORT/PROTOCOL, such as 10.0.0.1:80/tcp or [2001:db8::1]:443/udp, of tcp, udp or sctp, or * for every port; a range is 8000-8999, a prefix 203.0.113.0/28 or [2001:db8::/64]"
    )]
    BadService {
        /// What was given.
        text: String,
    },
    /// Not a range of ports, or not a prefix of addresses.
    #[error("`{text}` is not a service: {problem}")]
    BadSpan {
        /// What was given.
        text: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Of two ranges of ports, neither holds the other.
    #[error(
        "service {id} and {other} have some ports in common, and each has others besides, so that neither goes before the other: have one range hold the other, or have them apart"
    )]
    CrossingPorts {
        /// The service refused.
        id: ServiceId,
        /// The one that has them.
        other: ServiceId,
    },
    /// Not of the form `ADDRESS:PORT`.
    #[error(
        "`{text}` is not a backend: write ADDRESS:PORT, such as 10.1.0.2:80 or [2001:db8::2]:80"
    )]
    BadBackend {
        /// What was given.
        text: String,
    },
    /// An IPv6 address with a scope id or a flow label.
    #[error(
        "{address} has a scope id or a flow label, which packets to it do not have: write {}",
        SocketAddr::new(.address.ip(), .address.port())
    )]
    Scoped {
        /// What was given.
        address: SocketAddr,
    },
    /// Not of the form of a server id.
    #[error(
        "`{text}` is not a server id: write its 1 to 15 bytes in hexadecimal, two digits each, such as 0a1b"
    )]
    BadServerId {
        /// What was given.
        text: String,
    },
    /// A VIP that no service announces.
    #[error(
        "{vip} is not announced: give a service of it `announce = true`, or `lbctl service set --announce true`"
    )]
    NotAnnounced {
        /// Which.
        vip: IpAddr,
    },
    /// Not a prefix of addresses.
    #[error("`{text}` is not a prefix: {problem}")]
    BadPrefix {
        /// What was given.
        text: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An access list contradicts itself, or has no name.
    #[error("access list {name}: {problem}")]
    BadAccessList {
        /// Which.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// There is an access list of that name.
    #[error("access list {name} exists already: give another name")]
    DuplicateAccessList {
        /// Which.
        name: String,
    },
    /// No such access list.
    #[error("no access list {name}: `lbctl access-list list` shows those there are")]
    UnknownAccessList {
        /// Which.
        name: String,
    },
    /// A prefix that is to leave a list is not in it.
    #[error(
        "access list {name} has no prefix {prefix}: `lbctl access-list show {name}` shows those it has"
    )]
    UnknownPrefix {
        /// Of which list.
        name: String,
        /// Which.
        prefix: String,
    },
    /// An address pool contradicts itself or others, or has no name.
    #[error("address pool {name}: {problem}")]
    BadAddressPool {
        /// Which.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// No such address pool.
    #[error(
        "no address pool {name}: `lbctl status` shows those there are, which the configuration names"
    )]
    UnknownAddressPool {
        /// Which.
        name: String,
    },
    /// A list that is to go says who may send to a service.
    #[error(
        "access list {name} is that of service {id}, which would be open to everybody: `lbctl service set {id} --no-access-list` first"
    )]
    AccessListInUse {
        /// Which.
        name: String,
        /// A service that has it.
        id: ServiceId,
    },
    /// The service exists already.
    #[error("service {id} exists already: remove it first, or change its backends")]
    DuplicateService {
        /// Which.
        id: ServiceId,
    },
    /// No such service.
    #[error("no service {id}: `lbctl service list` shows those there are")]
    UnknownService {
        /// Which.
        id: ServiceId,
    },
    /// The backend exists already.
    #[error(
        "service {id} has a backend {address} already: `lbctl backend weight` changes its weight"
    )]
    DuplicateBackend {
        /// Of which service.
        id: ServiceId,
        /// Which.
        address: SocketAddr,
    },
    /// No such backend.
    #[error("service {id} has no backend {address}: `lbctl backend list {id}` shows those it has")]
    UnknownBackend {
        /// Of which service.
        id: ServiceId,
        /// Which.
        address: SocketAddr,
    },
    /// A value is out of range or does not fit the rest.
    #[error("service {id}: {field}: {problem}")]
    Invalid {
        /// Of which service.
        id: ServiceId,
        /// Which field, as the configuration names it.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A check cannot be carried out as it is.
    #[error("service {id}: check {check}: {field}: {problem}")]
    InvalidCheck {
        /// Of which service.
        id: ServiceId,
        /// The check's name.
        check: String,
        /// Which of its keys, as the configuration names it.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Two backends of a service would be named by the same connection ids.
    #[error(
        "backend {address} has the server id {server_id} that {other} of service {id} has already: give each server its own"
    )]
    SharedServerId {
        /// Of which service.
        id: ServiceId,
        /// The backend refused.
        address: SocketAddr,
        /// The one that has it.
        other: SocketAddr,
        /// The id.
        server_id: ServerId,
    },
    /// Services of a group share everything.
    #[error(
        "service {id}: {field}: {what}, which is {other} of the same group: its services share this, so leave it out, or give all the same"
    )]
    GroupDiffers {
        /// The service refused.
        id: ServiceId,
        /// Another one of its group.
        other: ServiceId,
        /// What differs, as the configuration names it.
        field: &'static str,
        /// How.
        what: String,
    },
    /// Two `nat` services would need the same answers rewritten to different VIPs.
    #[error(
        "backend {address} already serves {other} in nat mode, and its answers cannot be told apart: give {id} another backend or port of it, or use mode \"ipip\""
    )]
    SharedNatBackend {
        /// The service refused.
        id: ServiceId,
        /// The one that has it.
        other: ServiceId,
        /// The backend.
        address: SocketAddr,
    },
}
