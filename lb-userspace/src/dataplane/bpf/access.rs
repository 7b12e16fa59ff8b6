//! The trie of access lists, written and read in batches. What is in it is decided in [`crate::plan`].

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{Ebpf, maps::Map};
use lb_common::tables::AccessKey;
use zerocopy::FromZeros;

use super::{
    flows::{Batch, delete_batch, lookup_batch, update_batch},
    maps::take,
};
use crate::{dataplane::DataplaneError, model::Rule};

/// Prefixes written or read at once.
const BATCH: usize = 4_096;
/// The map's name.
pub const ACCESS: &str = "ACCESS";

/// All access lists.
#[derive(Debug)]
pub struct AccessMap {
    fd: OwnedFd,
    capacity: u32,
}

impl AccessMap {
    /// Takes the map out of a loaded object.
    ///
    /// # Errors
    /// It is missing or of another kind.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let Map::LpmTrie(data) = take(ebpf, ACCESS)? else {
            return Err(DataplaneError::new(
                format!("opening map {ACCESS}"),
                &"it is not a trie",
            ));
        };
        let asking = |error: &dyn std::fmt::Display| {
            DataplaneError::new(format!("asking about map {ACCESS}"), error)
        };
        let capacity = data.info().map_err(|error| asking(&error))?.max_entries();
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| asking(&error))?;
        Ok(Self { fd, capacity })
    }

    /// Prefixes that it has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Writes what a list says of prefixes.
    ///
    /// # Errors
    /// The kernel refuses; some may be written then.
    pub fn put(&self, list: u32, rules: &[Rule]) -> Result<(), DataplaneError> {
        for rules in rules.chunks(BATCH) {
            let mut keys: Vec<AccessKey> =
                rules.iter().map(|(prefix, _)| prefix.key(list)).collect();
            let mut values: Vec<u32> = rules.iter().map(|(_, says)| says.number()).collect();
            let batch = Batch {
                keys: &mut keys,
                values: &mut values,
            };
            let done = update_batch(self.fd.as_fd(), batch);
            done.map_err(|error| DataplaneError::new("writing an access list", &error))?;
        }
        Ok(())
    }

    /// Takes prefixes out of a list; those that are not there are as good as gone.
    ///
    /// # Errors
    /// The kernel refuses; some may be gone then.
    pub fn forget(&self, list: u32, rules: &[Rule]) -> Result<(), DataplaneError> {
        let failed = |error: io::Error| DataplaneError::new("removing an access list", &error);
        for rules in rules.chunks(BATCH) {
            let keys: Vec<AccessKey> = rules.iter().map(|(prefix, _)| prefix.key(list)).collect();
            let mut rest = keys.as_slice();
            while !rest.is_empty() {
                let (done, missing) = delete_batch(self.fd.as_fd(), rest).map_err(failed)?;
                let gone = done + usize::from(missing);
                rest = rest.get(gone.max(1)..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Everything that is there.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn read(&self) -> Result<BTreeMap<AccessKey, u32>, DataplaneError> {
        let mut all = Vec::new();
        let mut keys = vec![AccessKey::new_zeroed(); BATCH];
        let mut values = vec![0u32; BATCH];
        let mut cursor = None;
        loop {
            let batch = Batch {
                keys: &mut keys,
                values: &mut values,
            };
            let (count, next) = lookup_batch(self.fd.as_fd(), cursor, batch)
                .map_err(|error| DataplaneError::new("reading the access lists", &error))?;
            let pairs = keys.iter().copied().zip(values.iter().copied());
            all.extend(pairs.take(count));
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(all.into_iter().collect()),
            }
        }
    }
}
