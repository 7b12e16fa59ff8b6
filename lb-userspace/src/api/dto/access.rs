//! Access lists over the wire.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Action;
use crate::{
    agent::Listed,
    model::{self, Access, AccessEdit, ModelError, Prefix, ServiceId},
};

/// Prefixes of an access list, all of them: what it is to be, or what it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefixes {
    /// Those that may send.
    #[serde(default)]
    pub allow: Vec<Prefix>,
    /// Those that may not.
    #[serde(default)]
    pub deny: Vec<Prefix>,
}

impl Prefixes {
    /// The model's list.
    ///
    /// # Errors
    /// As [`model::AccessList::new`].
    pub fn into_model(self, name: &str) -> Result<model::AccessList, ModelError> {
        model::AccessList::new(name, self.allow, self.deny)
    }
}

/// An access list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessList {
    /// What services name it by.
    pub name: String,
    /// Prefixes that may send.
    pub allow: Vec<Prefix>,
    /// Prefixes that may not.
    pub deny: Vec<Prefix>,
    /// The services that have it.
    pub services: Vec<ServiceId>,
}

/// An access list in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessListSummary {
    /// What services name it by.
    pub name: String,
    /// How many prefixes may send.
    pub allow: usize,
    /// How many may not.
    pub deny: usize,
    /// What becomes of sources in none of them: `allow` or `deny`.
    pub others: String,
    /// The services that have it.
    pub services: Vec<ServiceId>,
}

/// Which source is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessQuery {
    /// Its address.
    pub source: IpAddr,
}

/// What becomes of a source's packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Its address.
    pub source: IpAddr,
    /// `allow` or `deny`.
    pub access: String,
    /// The prefix that says so.
    pub prefix: Prefix,
}

/// Answer to a change of an access list that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListChanged {
    /// What changed.
    pub changed: ListSubject,
}

/// Which access list a change was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSubject {
    /// What happened to it.
    pub action: Action,
    /// Its name.
    pub access_list: String,
    /// Prefixes that came and went, where single ones did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<AccessEdit>,
}

impl From<Listed> for AccessList {
    fn from((list, services): Listed) -> Self {
        Self {
            name: list.name().to_owned(),
            allow: list.prefixes(Access::Allow).collect(),
            deny: list.prefixes(Access::Deny).collect(),
            services,
        }
    }
}

impl From<Listed> for AccessListSummary {
    fn from((list, services): Listed) -> Self {
        let allow = list.prefixes(Access::Allow).count();
        Self {
            name: list.name().to_owned(),
            allow,
            deny: list.prefixes(Access::Deny).count(),
            others: list.others().name().to_owned(),
            services,
        }
    }
}
