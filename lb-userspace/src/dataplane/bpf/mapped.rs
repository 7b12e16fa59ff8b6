//! A mmapable array map as memory. The only place where the agent writes memory that the kernel
//! program reads; all such writes are volatile, since the program reads at any time.

use std::{
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use lb_common::tables::{
    Backend, Bucket, Control, Descriptor, Guard, GuardEntry, Handshake, Member, ServiceEntry,
    Signs, handshake,
};
use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

use crate::dataplane::DataplaneError;

/// The elements of a `BPF_F_MMAPABLE` array of `T`, whose stride is the size of `T` rounded up to 8.
#[derive(Debug)]
pub struct Mapped<T> {
    memory: Arc<MmapRaw>,
    length: u32,
    name: &'static str,
    element: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Mapped<T> {
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps an array of `length` elements.
    ///
    /// # Errors
    /// The kernel refuses: the map is not mmapable.
    pub fn new(fd: impl AsFd, length: u32, name: &'static str) -> Result<Self, DataplaneError> {
        let bytes = (length as usize * Self::STRIDE).next_multiple_of(page_size());
        let memory = MmapOptions::new()
            .len(bytes)
            .map_raw(fd.as_fd().as_raw_fd())
            .map_err(|error| DataplaneError::new(format!("mapping {name}"), &error))?;
        Ok(Self {
            memory: Arc::new(memory),
            length,
            name,
            element: PhantomData,
        })
    }

    /// Elements of the array.
    pub fn length(&self) -> u32 {
        self.length
    }

    fn at(&self, index: u32) -> Result<*mut T, DataplaneError> {
        if index >= self.length {
            let problem = format!("index {index} of {}", self.length);
            return Err(DataplaneError::new(
                format!("writing {}", self.name),
                &problem,
            ));
        }
        // SAFETY: within the mapping, which holds `length` elements of `STRIDE` bytes.
        Ok(unsafe { self.memory.as_mut_ptr().add(index as usize * Self::STRIDE) }.cast())
    }

    /// Writes an element.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn set(&mut self, index: u32, value: T) -> Result<(), DataplaneError> {
        let element = self.at(index)?;
        // SAFETY: a valid, aligned element (pages are aligned, strides are multiples of 8).
        unsafe { element.write_volatile(value) };
        Ok(())
    }

    /// Reads an element.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn get(&self, index: u32) -> Result<T, DataplaneError> {
        let element = self.at(index)?;
        // SAFETY: as in `set`; any bytes are a `T`.
        Ok(unsafe { element.read_volatile() })
    }

    /// Stores an aligned 64-bit word of an element in one go, after everything written before.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn store_word(
        &mut self,
        index: u32,
        word: usize,
        value: u64,
    ) -> Result<(), DataplaneError> {
        assert!(word * 8 + 8 <= size_of::<T>() && align_of::<T>() >= 4);
        let element = self.at(index)?.cast::<AtomicU64>();
        // SAFETY: the word lies within the element and is aligned, and the program reads it whole.
        unsafe { &*element.add(word) }.store(value, Ordering::Release);
        Ok(())
    }
}

impl Mapped<u64> {
    /// The same memory for another thread, to be written by additions only.
    pub fn share(&self) -> Self {
        Self {
            memory: Arc::clone(&self.memory),
            ..*self
        }
    }

    /// Sets a number of flows to zero.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn reset_load(&mut self, index: u32) -> Result<(), DataplaneError> {
        self.load_at(index)?.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// A number of flows; below zero where more were taken off than added.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn load(&self, index: u32) -> Result<i64, DataplaneError> {
        Ok(self.load_at(index)?.load(Ordering::Relaxed).cast_signed())
    }

    /// Adds to a number of flows, which the program adds to at any time.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn add_load(&self, index: u32, change: i64) -> Result<(), DataplaneError> {
        let load = self.load_at(index)?;
        // Wraps: two's complement adds what is negative.
        load.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
        Ok(())
    }

    fn load_at(&self, index: u32) -> Result<&AtomicU64, DataplaneError> {
        let element = self.at(index)?;
        // SAFETY: a valid, aligned element of eight bytes that lives as long as the mapping, and is
        // only accessed as an atomic.
        Ok(unsafe { AtomicU64::from_ptr(element) })
    }
}

impl Mapped<Bucket> {
    /// Stores a place of a bucket in one go.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn store_place(
        &mut self,
        index: u32,
        place: usize,
        value: u32,
    ) -> Result<(), DataplaneError> {
        let bucket = self.at(index)?.cast::<u32>();
        assert!(place < Bucket::default().len());
        // SAFETY: a word of a valid element, aligned; the program reads it whole.
        unsafe { bucket.add(place).write_volatile(value) };
        Ok(())
    }
}

impl Mapped<Control> {
    /// Stores the features in one go.
    ///
    /// # Errors
    /// Never, for a map with its one element.
    pub fn store_features(&mut self, features: u32) -> Result<(), DataplaneError> {
        let control = self.at(0)?;
        // SAFETY: a field of a valid element, aligned; the program reads it whole.
        unsafe { (&raw mut (*control).features).write_volatile(features) };
        Ok(())
    }

    /// Stores what packets to unknown ports get, in one go.
    ///
    /// # Errors
    /// Never, for a map with its one element.
    pub fn store_unknown_port(&mut self, refusal: u8) -> Result<(), DataplaneError> {
        let control = self.at(0)?;
        // SAFETY: as above.
        unsafe { (&raw mut (*control).unknown_port).write_volatile(refusal) };
        Ok(())
    }

    /// Stores the port of `gue` tunnels, in network order, in one go.
    ///
    /// # Errors
    /// Never, for a map with its one element.
    pub fn store_gue_port(&mut self, port: u16) -> Result<(), DataplaneError> {
        let control = self.at(0)?;
        // SAFETY: as above.
        unsafe { (&raw mut (*control).gue_port).write_volatile(port) };
        Ok(())
    }
}

impl Mapped<Member> {
    /// Makes a member another backend's in one go; its weight, limit and subsets are written first.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn store_member(&mut self, index: u32, member: Member) -> Result<(), DataplaneError> {
        let place = self.at(index)?;
        // SAFETY: fields of a valid element, aligned; the program reads each whole.
        unsafe {
            (&raw mut (*place).weight).write_volatile(member.weight);
            (&raw mut (*place).apart).write_volatile(member.apart);
            (&raw mut (*place).limit).write_volatile(member.limit);
        }
        let word: u64 = transmute!([member.backend, member.generation]);
        self.store_word(index, 0, word)
    }
}

impl Mapped<Backend> {
    /// Stores the state of a backend in one go.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn store_state(&mut self, index: u32, state: u8) -> Result<(), DataplaneError> {
        let backend = self.at(index)?;
        // SAFETY: a field of a valid element, aligned; the program reads it whole.
        unsafe { (&raw mut (*backend).state).write_volatile(state) };
        fence(Ordering::Release);
        Ok(())
    }
}

impl Mapped<Signs> {
    /// Stores the interface that a backend's answers come in by, in one go; the program counts beside it.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn set_way_in(&mut self, index: u32, interface: u32) -> Result<(), DataplaneError> {
        let signs = self.at(index)?;
        // SAFETY: a field of a valid element, aligned; the program reads it whole.
        unsafe { (&raw mut (*signs).interface).write_volatile(interface.into()) };
        Ok(())
    }
}

impl Mapped<Handshake> {
    /// Ends a handshake, in one go.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn set_stalled(&mut self, index: u32) -> Result<(), DataplaneError> {
        let found = self.at(index)?;
        // SAFETY: as above. Where the program writes it at the same time, the handshake counts twice.
        unsafe { (&raw mut (*found).state).write_volatile(handshake::STALLED) };
        Ok(())
    }
}

impl Mapped<ServiceEntry> {
    /// Writes one half of a service; the other is in force and stays untouched.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn set_half(
        &mut self,
        index: u32,
        half: usize,
        descriptor: Descriptor,
    ) -> Result<(), DataplaneError> {
        let entry = self.at(index)?;
        assert!(half < 2);
        // SAFETY: one of the two halves of a valid, aligned element.
        unsafe {
            (&raw mut (*entry).halves)
                .cast::<Descriptor>()
                .add(half)
                .write_volatile(descriptor)
        };
        Ok(())
    }
}

impl Mapped<GuardEntry> {
    /// Writes one half of a guard, the one not in force.
    ///
    /// # Errors
    /// The index is out of bounds.
    pub fn set_guard(
        &mut self,
        index: u32,
        half: usize,
        guard: Guard,
    ) -> Result<(), DataplaneError> {
        let entry = self.at(index)?;
        assert!(half < 2);
        // SAFETY: one of the two halves of a valid, aligned element.
        unsafe {
            (&raw mut (*entry).halves)
                .cast::<Guard>()
                .add(half)
                .write_volatile(guard)
        };
        Ok(())
    }
}

fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4_096)
}
