//! Fragments that came before the first of their datagram, on their way from the program and back to it.
//! Who is held for how long is decided in [`crate::fragments`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, RingBuf},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions},
};
use lb_common::{
    fragment,
    memory::HeldFrame,
    tables::{Datagram, Early, FragmentKey},
    vlan,
};
use zerocopy::{FromBytes as _, IntoBytes as _, transmute};

use super::{Program, chain, flows, maps::typed};
use crate::dataplane::DataplaneError;

/// What the program hands over, and what tells when it can be given back.
pub struct EarlyFragments {
    ring: RingBuf<MapData>,
    datagrams: HashMap<MapData, [u8; 40], [u8; 112]>,
}

impl std::fmt::Debug for EarlyFragments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EarlyFragments").finish_non_exhaustive()
    }
}

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Datagram>() == 112);
};

impl EarlyFragments {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// They have been taken, or are of another kind.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            ring: typed(ebpf, "EARLY")?,
            datagrams: typed(ebpf, "DATAGRAMS")?,
        })
    }

    /// The next fragment, if there is one.
    pub fn take_frame(&mut self) -> Option<HeldFrame> {
        loop {
            let item = self.ring.next()?;
            // One of another size is a defect of ours, and nobody's frame.
            let Ok((early, _)) = Early::read_from_prefix(&item) else {
                continue;
            };
            let frame = early.frame.as_bytes();
            let length = (early.length as usize).min(frame.len());
            let count = (early.tag_count as usize).min(early.tags.len());
            let tags = &early.tags[..count];
            return Some(HeldFrame {
                key: early.key,
                offset: early.offset,
                interface: early.interface,
                frame: vlan::restored(&frame[..length], tags),
            });
        }
    }

    /// Whether the first fragment of a datagram has come.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn is_known(&self, key: &FragmentKey) -> Result<bool, DataplaneError> {
        let key: [u8; 40] = transmute!(*key);
        match self.datagrams.get(&key, 0) {
            Ok(datagram) => Ok(fragment::counts(&transmute!(datagram), flows::now())),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(DataplaneError::new("looking for a datagram", &error)),
        }
    }
}

impl AsFd for EarlyFragments {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for EarlyFragments {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Program {
    /// What is to be held, once.
    ///
    /// # Errors
    /// It has been asked for before.
    pub fn early_fragments(&mut self) -> Result<EarlyFragments, DataplaneError> {
        EarlyFragments::take(&mut self.ebpf)
    }

    /// Gives a fragment back as if it came from the network: the kernel carries the program's verdict out
    /// (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18).
    ///
    /// # Errors
    /// The kernel refuses: it is older, or the interface has gone.
    pub fn give_back(&mut self, held: &HeldFrame) -> Result<(), DataplaneError> {
        let context = context(held);
        let options = TestRunOptions {
            data_in: Some(&held.frame),
            ctx_in: Some(context.as_bytes()),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        };
        let run = self.named(HELD)?.test_run(options);
        run.map(drop).map_err(|error| {
            DataplaneError::new("giving back a fragment that was held", &chain(&error))
        })
    }
}

/// The program that fragments are given back by.
pub(super) const HELD: &str = "held";

/// `struct xdp_md`: `data`, `data_end`, `data_meta`, `ingress_ifindex`, `rx_queue_index`, `egress_ifindex`.
fn context(held: &HeldFrame) -> [u32; 6] {
    [0, held.frame.len() as u32, 0, held.interface, 0, 0]
}
