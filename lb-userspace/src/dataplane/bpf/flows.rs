//! A flow table of the kernel's, read and swept in batches. Which records to remove is decided elsewhere.

use aya::maps::MapData;

use crate::dataplane::DataplaneError;

/// A flow table.
#[derive(Debug)]
pub struct FlowMap {
    data: MapData,
    capacity: u32,
}

impl FlowMap {
    /// Takes a map that holds records under flow keys.
    ///
    /// # Errors
    /// The kernel says nothing about it.
    pub fn new(data: MapData, name: &'static str) -> Result<Self, DataplaneError> {
        let info = data
            .info()
            .map_err(|error| DataplaneError::new(format!("asking about map {name}"), &error))?;
        let capacity = info.max_entries();
        Ok(Self { data, capacity })
    }

    /// Records that it has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}
