//! The flow tables of the kernel, read in batches. Which records to remove is decided in
//! [`crate::plan::census`].

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::maps::MapData;
use lb_common::tables::{FlowKey, PortKey, Record, Session, TICK_SHIFT, Table, Tick};
use nix::time::{ClockId, clock_gettime};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::mapped::Mapped;
use crate::dataplane::{DataplaneError, FlowTables};

/// Records read at once. Must hold the fullest bucket of the kernel's hash.
const BATCH: usize = 4_096;

/// The time, by the clock that `bpf_ktime_get_coarse_ns` reads.
pub fn now() -> Tick {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    let nanoseconds = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
    (nanoseconds >> TICK_SHIFT) as Tick
}

/// A flow table, or another hash of plain keys and values.
#[derive(Debug)]
pub struct FlowMap<K = FlowKey, V = Record> {
    fd: OwnedFd,
    capacity: u32,
    name: &'static str,
    elements: PhantomData<(K, V)>,
}

/// What such a hash holds.
pub trait Element: FromBytes + IntoBytes + Immutable + Copy + PartialEq {}
impl<T: FromBytes + IntoBytes + Immutable + Copy + PartialEq> Element for T {}

impl<K: Element, V: Element> FlowMap<K, V> {
    /// Takes a map that holds such values under such keys.
    ///
    /// # Errors
    /// The kernel says nothing about it.
    pub fn new(data: &MapData, name: &'static str) -> Result<Self, DataplaneError> {
        let asking = |error: &dyn std::fmt::Display| {
            DataplaneError::new(format!("asking about map {name}"), error)
        };
        let capacity = data.info().map_err(|error| asking(&error))?.max_entries();
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| asking(&error))?;
        Ok(Self {
            fd,
            capacity,
            name,
            elements: PhantomData,
        })
    }

    /// Records that it has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Another handle of the same table.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn share(&self) -> Result<Self, DataplaneError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|error| self.failed("sharing", &error))?;
        Ok(Self { fd, ..*self })
    }

    fn failed(&self, doing: &str, cause: &dyn std::fmt::Display) -> DataplaneError {
        DataplaneError::new(format!("{doing} map {}", self.name), cause)
    }

    fn scan(&self, show: &mut dyn FnMut(&K, &V)) -> Result<(), DataplaneError> {
        let mut keys = vec![K::new_zeroed(); BATCH];
        let mut records = vec![V::new_zeroed(); BATCH];
        let mut cursor = None;
        loop {
            let batch = Batch {
                keys: &mut keys,
                values: &mut records,
            };
            let (count, next) = lookup_batch(self.fd.as_fd(), cursor, batch)
                .map_err(|error| self.failed("reading", &error))?;
            for (key, record) in keys.iter().zip(&records).take(count) {
                show(key, record);
            }
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Takes a record out if it is as expected, and puts it back where the program has renewed it
    /// in that very moment.
    fn remove(&self, key: &K, expected: &V) -> Result<bool, DataplaneError> {
        if self.get(key)?.as_ref() != Some(expected) {
            return Ok(false);
        }
        match self.take(key)? {
            Some(record) if record == *expected => Ok(true),
            Some(record) => {
                self.insert_new(key, &record)?;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn get(&self, key: &K) -> Result<Option<V>, DataplaneError> {
        let found = read_one(BPF_MAP_LOOKUP_ELEM, self.fd.as_fd(), key);
        found.map_err(|error| self.failed("sweeping", &error))
    }

    /// Removes an element, and says what it was.
    fn take(&self, key: &K) -> Result<Option<V>, DataplaneError> {
        let taken = read_one(BPF_MAP_LOOKUP_AND_DELETE_ELEM, self.fd.as_fd(), key);
        taken.map_err(|error| self.failed("sweeping", &error))
    }

    /// Inserts an element unless there is one again, or its place was taken; whether it did.
    fn insert_new(&self, key: &K, value: &V) -> Result<bool, DataplaneError> {
        let inserted = insert_new(self.fd.as_fd(), key, value);
        inserted.map_err(|error| self.failed("sweeping", &error))
    }
}

/// Handles of both flow tables and of what is counted beside them.
#[derive(Debug)]
pub struct SharedFlows {
    /// Flows of which a packet after the first was seen.
    pub established: FlowMap,
    /// Flows of which one packet was seen.
    pub half_open: FlowMap,
    /// Sessions of mode `full-nat`.
    pub sessions: FlowMap<FlowKey, Session>,
    /// Whose each port is.
    pub ports: FlowMap<PortKey, FlowKey>,
    /// Flows in progress.
    pub loads: Mapped<u64>,
}

impl SharedFlows {
    fn table(&self, table: Table) -> &FlowMap {
        match table {
            Table::Established => &self.established,
            Table::HalfOpen => &self.half_open,
        }
    }
}

impl FlowTables for SharedFlows {
    fn scan(
        &mut self,
        table: Table,
        show: &mut dyn FnMut(&FlowKey, &Record),
    ) -> Result<(), DataplaneError> {
        self.table(table).scan(show)
    }

    fn remove(
        &mut self,
        table: Table,
        key: &FlowKey,
        record: &Record,
    ) -> Result<bool, DataplaneError> {
        self.table(table).remove(key, record)
    }

    fn scan_sessions(
        &mut self,
        show: &mut dyn FnMut(&FlowKey, &Session),
    ) -> Result<(), DataplaneError> {
        self.sessions.scan(show)
    }

    fn scan_ports(
        &mut self,
        show: &mut dyn FnMut(&PortKey, &FlowKey),
    ) -> Result<(), DataplaneError> {
        self.ports.scan(show)
    }

    fn session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        self.sessions.get(key)
    }

    fn take_session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        self.sessions.take(key)
    }

    fn insert_session(&mut self, key: &FlowKey, session: &Session) -> Result<bool, DataplaneError> {
        self.sessions.insert_new(key, session)
    }

    fn port(&mut self, key: &PortKey) -> Result<Option<FlowKey>, DataplaneError> {
        self.ports.get(key)
    }

    fn free_port(&mut self, key: &PortKey) -> Result<(), DataplaneError> {
        self.ports.take(key).map(drop)
    }

    fn claim_port(&mut self, key: &PortKey, flow: &FlowKey) -> Result<bool, DataplaneError> {
        self.ports.insert_new(key, flow)
    }

    fn wait_for_packets(&mut self) -> Result<(), DataplaneError> {
        super::grace::wait()
    }

    fn load(&self, counters: u32) -> Result<i64, DataplaneError> {
        self.loads.load(counters)
    }
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
const BPF_NOEXIST: u64 = 1;

/// `union bpf_attr` for one element
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for a batch.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A batch: as many keys as values, both of the map's sizes.
pub(super) struct Batch<'a, K, V> {
    pub keys: &'a mut [K],
    pub values: &'a mut [V],
}

/// Where a batch begins. Of a hash, it is four bytes; of other maps, a key.
pub(super) type Cursor = [u64; 5];

/// Reads elements from a place on; how many, and the next place.
pub(super) fn lookup_batch<K: FromBytes + IntoBytes, V: FromBytes + IntoBytes>(
    fd: BorrowedFd<'_>,
    cursor: Option<Cursor>,
    batch: Batch<'_, K, V>,
) -> io::Result<(usize, Option<Cursor>)> {
    const { assert!(size_of::<K>() <= size_of::<Cursor>()) };
    let mut next = Cursor::default();
    let mut attr = BatchAttr {
        in_batch: cursor
            .as_ref()
            .map_or(0, |cursor| (&raw const *cursor) as u64),
        out_batch: (&raw mut next) as u64,
        keys: batch.keys.as_mut_ptr() as u64,
        values: batch.values.as_mut_ptr() as u64,
        count: batch.keys.len().min(batch.values.len()) as u32,
        map_fd: fd.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: every pointer is to memory that lives through the call: cursors that a key fits in, and
    // `count` keys and values of the map's sizes, in which any bytes are valid.
    let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    match result {
        Ok(()) => Ok((attr.count as usize, Some(next))),
        // The last batch.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, None)),
        Err(error) => Err(error),
    }
}

/// Writes elements, whatever was there.
pub(super) fn update_batch<K: IntoBytes, V: IntoBytes>(
    fd: BorrowedFd<'_>,
    batch: Batch<'_, K, V>,
) -> io::Result<()> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: batch.keys.as_ptr() as u64,
        values: batch.values.as_ptr() as u64,
        count: batch.keys.len().min(batch.values.len()) as u32,
        map_fd: fd.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `count` keys and values of the map's sizes live through the call, which only reads them.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }
}

/// Removes elements up to the first that is not there: how many, and whether one is not.
pub(super) fn delete_batch<K: IntoBytes>(
    fd: BorrowedFd<'_>,
    keys: &[K],
) -> io::Result<(usize, bool)> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: 0,
        count: keys.len() as u32,
        map_fd: fd.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `count` keys of the map's size live through the call, which only reads them.
    match unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr) } {
        Ok(()) => Ok((attr.count as usize, false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, true)),
        Err(error) => Err(error),
    }
}

fn read_one<K: Element, V: Element>(
    command: libc::c_int,
    fd: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut record = V::new_zeroed();
    let mut attr = ElementAttr {
        map_fd: fd.as_raw_fd() as u32,
        zero: 0,
        key: key.as_bytes().as_ptr() as u64,
        value: record.as_mut_bytes().as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value are of the map's sizes and live through the call; any bytes are a record.
    match unsafe { bpf(command, &mut attr) } {
        Ok(()) => Ok(Some(record)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inserts an element unless there is one again, or its place was taken; whether it did.
fn insert_new<K: Element, V: Element>(fd: BorrowedFd<'_>, key: &K, record: &V) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: fd.as_raw_fd() as u32,
        zero: 0,
        key: key.as_bytes().as_ptr() as u64,
        value: record.as_bytes().as_ptr() as u64,
        flags: BPF_NOEXIST,
    };
    // SAFETY: key and value are of the map's sizes and live through the call, which only reads them.
    match unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) } {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::E2BIG)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// # Safety
/// `attr` is what `command` takes, and every address in it is of memory that the command may use so.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<()> {
    // SAFETY: as the caller promises; the size is that of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, (&raw mut *attr), size_of::<T>()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
