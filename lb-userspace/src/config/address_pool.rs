//! `[[address_pool]]`.

use super::reader::{Located, Section};
use crate::model::{AddressPool, ModelError, POOL_PORTS, State, parse_addresses, parse_ports};

const ADDRESS_POOL: &[&str] = &["name", "addresses", "ports"];

/// All address pools.
pub(super) fn read_all(root: &Section<'_>) -> Vec<AddressPool> {
    let mut pools: Vec<AddressPool> = Vec::new();
    for section in root.sections("address_pool", ADDRESS_POOL) {
        let Some(pool) = read(&section) else {
            continue;
        };
        let together = pools.iter().cloned().chain([pool.clone()]);
        match State::with_pools(together, [], []) {
            Ok(_) => pools.push(pool),
            Err(error) => section.error(section.span(), "", problem_of(error)),
        }
    }
    pools
}

fn read(section: &Section<'_>) -> Option<AddressPool> {
    section.require("name", "snat");
    if !section.has("addresses") {
        let problem = "missing: write as [\"10.9.0.1\", \"10.9.0.8-10.9.0.15\"]";
        section.error(section.span(), "addresses", problem.to_owned());
    }
    let name = section.text("name").map(Located::into_inner);
    let mut sound = true;
    let mut addresses = Vec::new();
    for text in section.all_strings("addresses")? {
        match parse_addresses(text.get_ref()) {
            Ok(read) => addresses.extend(read),
            Err(problem) => {
                section.error(text.span(), "addresses", problem);
                sound = false;
            }
        }
    }
    let ports = section.value("ports", parse_ports).map(Located::into_inner);
    if !section.has("addresses") || !sound || (ports.is_none() && section.has("ports")) {
        return None;
    }
    match AddressPool::new(&name?, addresses, ports.unwrap_or(POOL_PORTS)) {
        Ok(pool) => Some(pool),
        Err(error) => {
            section.error(section.span(), "", problem_of(error));
            None
        }
    }
}

/// The refusal without the pool's name, where the place says it already.
fn problem_of(error: ModelError) -> String {
    match error {
        ModelError::BadAddressPool { problem, .. } => problem,
        error => error.to_string(),
    }
}
