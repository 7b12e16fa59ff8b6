//! The tries that find services of several addresses or ports. What is in them is decided in [`crate::plan`].

use std::collections::BTreeMap;

use aya::{
    Ebpf, Pod,
    maps::{
        MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::tables::{ClassKey, VipKey};
use zerocopy::transmute;

use super::maps::typed;
use crate::{dataplane::DataplaneError, plan::Ports};

/// Names of the maps.
pub const CLASSES: &str = "CLASSES";
pub const CLASS_PORTS: &str = "CLASS_PORTS";

/// Both tries.
pub struct ClassMaps {
    prefixes: LpmTrie<MapData, [u8; 20], [u32; 2]>,
    ports: LpmTrie<MapData, [u8; 8], u32>,
}

/// As the kernel has it: how many bits count stands first.
fn vip_key(key: VipKey) -> Key<[u8; 20]> {
    let (VipKey { bits, .. }, bytes): (_, [u8; 24]) = (key, transmute!(key));
    Key::new(bits, rest(&bytes))
}

fn class_key(key: ClassKey) -> Key<[u8; 8]> {
    let (ClassKey { bits, .. }, bytes): (_, [u8; 12]) = (key, transmute!(key));
    Key::new(bits, rest(&bytes))
}

/// All but the first four bytes.
fn rest<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut rest = [0; N];
    for (to, from) in rest.iter_mut().zip(bytes.iter().skip(4)) {
        *to = *from;
    }
    rest
}

/// Those with the first four bytes before them.
fn whole<const N: usize>(bits: u32, rest: &[u8]) -> [u8; N] {
    let mut all = [0; N];
    let bytes = bits.to_ne_bytes().into_iter().chain(rest.iter().copied());
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = from;
    }
    all
}

/// Takes an element out; one that is not there is as good as gone.
fn remove<K: Pod, V: Pod>(
    map: &mut LpmTrie<MapData, K, V>,
    key: &Key<K>,
    what: &str,
) -> Result<(), DataplaneError> {
    const NOT_THERE: i32 = nix::errno::Errno::ENOENT as i32;
    match map.remove(key) {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(NOT_THERE) => {
            Ok(())
        }
        done => done.map_err(|error| DataplaneError::new(format!("removing {what}"), &error)),
    }
}

impl ClassMaps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// One is missing or of another kind.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            prefixes: typed(ebpf, CLASSES)?,
            ports: typed(ebpf, CLASS_PORTS)?,
        })
    }

    /// Has a prefix of VIPs lead to classes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn put_prefix(&mut self, key: VipKey, halves: [u32; 2]) -> Result<(), DataplaneError> {
        let done = self.prefixes.insert(&vip_key(key), halves, 0);
        done.map_err(|error| DataplaneError::new("adding a prefix of VIPs", &error))
    }

    /// Has it lead nowhere.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_prefix(&mut self, key: VipKey) -> Result<(), DataplaneError> {
        remove(&mut self.prefixes, &vip_key(key), "a prefix of VIPs")
    }

    /// Gives a class its ports.
    ///
    /// # Errors
    /// The kernel refuses; it may have some of them then.
    pub fn put_class(&mut self, class: u32, ports: &Ports) -> Result<(), DataplaneError> {
        for range in ports.iter() {
            for key in range.keys(class) {
                let done = self.ports.insert(&class_key(key), range.index + 1, 0);
                done.map_err(|error| DataplaneError::new("adding ports of VIPs", &error))?;
            }
        }
        Ok(())
    }

    /// Takes all of them.
    ///
    /// # Errors
    /// The kernel refuses; some may be gone then.
    pub fn forget_class(&mut self, class: u32, ports: &Ports) -> Result<(), DataplaneError> {
        for key in ports.iter().flat_map(|range| range.keys(class)) {
            remove(&mut self.ports, &class_key(key), "ports of VIPs")?;
        }
        Ok(())
    }

    /// Every prefix of VIPs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn prefixes(&self) -> Result<BTreeMap<VipKey, [u32; 2]>, DataplaneError> {
        let failed = |error| DataplaneError::new("reading the prefixes of VIPs", &error);
        let items = self.prefixes.iter().map(|item| {
            let (key, halves) = item.map_err(failed)?;
            let bytes: [u8; 24] = whole(key.prefix_len(), &key.data());
            Ok((transmute!(bytes), halves))
        });
        items.collect()
    }

    /// Every port of every class.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn ports(&self) -> Result<BTreeMap<ClassKey, u32>, DataplaneError> {
        let failed = |error| DataplaneError::new("reading the ports of VIPs", &error);
        let items = self.ports.iter().map(|item| {
            let (key, place) = item.map_err(failed)?;
            let bytes: [u8; 12] = whole(key.prefix_len(), &key.data());
            Ok((transmute!(bytes), place))
        });
        items.collect()
    }
}
