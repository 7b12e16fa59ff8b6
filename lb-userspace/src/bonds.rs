//! Which interfaces a bond is made of, as its driver tells. Attaches nothing.

use std::{collections::BTreeSet, fs, io, path::Path};

/// Where the driver tells, of the calling thread's network namespace.
const TOLD: &str = "/proc/thread-self/net/bonding";
/// What stands before the name of each member there.
const MEMBER: &str = "Slave Interface: ";

/// The members of an interface, if it is a bond.
///
/// # Errors
/// They cannot be read.
pub fn members(interface: &str) -> io::Result<Option<BTreeSet<String>>> {
    members_in(Path::new(TOLD), interface)
}

fn members_in(told: &Path, interface: &str) -> io::Result<Option<BTreeSet<String>>> {
    match fs::read_to_string(told.join(interface)) {
        Ok(text) => Ok(Some(named(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn named(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix(MEMBER));
    names.map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Ethernet Channel Bonding Driver: v6.1.0\n\n\
        Bonding Mode: fault-tolerance (active-backup)\n\
        Primary Slave: None\n\
        Currently Active Slave: eth1\n\
        MII Status: up\n\n\
        Slave Interface: eth1\n\
        MII Status: up\n\n\
        Slave Interface: eth2\n\
        MII Status: down\n";

    #[test]
    fn a_bonds_members_are_those_that_its_driver_names_whatever_becomes_of_them() {
        assert_eq!(named(TEXT), ["eth1", "eth2"].map(str::to_owned).into());
        assert_eq!(
            named("Ethernet Channel Bonding Driver: v6.1.0\n"),
            BTreeSet::new()
        );
    }

    #[test]
    fn what_the_driver_does_not_know_is_no_bond() {
        assert_eq!(members_in(Path::new("/nowhere"), "eth1").unwrap(), None);
    }
}
