//! Formats of what is known of VLAN tags, and of devices that stand over others ([`crate::vlan`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A tag as it lies in a frame: its protocol (TPID) and its TCI, two bytes each (IEEE 802.1Q §9.6).
pub type Tag = [u8; 4];

/// Most tags that are looked behind.
pub const MOST_TAGS: usize = 2;

/// The bit of an interface's index that says that it is an [`Upper`]. Indices are positive signed numbers, so that none has it.
pub const UPPER: u32 = 1 << 31;

/// What has been taken off the frame at hand.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Tagged {
    /// Its tags, the outermost first.
    pub tags: [Tag; MOST_TAGS],
    /// How many there are; 0: nothing has been taken off.
    pub count: u32,
    /// The interface that the kernel has such a frame come in by: a VLAN device, with [`UPPER`], or where there is none, the one
    /// that it came in by.
    pub interface: u32,
}

impl Tagged {
    /// Nothing.
    pub const NONE: Self = Self {
        tags: [[0; 4]; MOST_TAGS],
        count: 0,
        interface: 0,
    };

    /// Bytes of tags beyond the one that every interface takes on top of its MTU, of a frame that keeps them. A device that
    /// stands over others says itself how much is left.
    #[inline(always)]
    pub const fn surplus(&self) -> u16 {
        if self.count as usize == MOST_TAGS && self.interface & UPPER == 0 {
            size_of::<Tag>() as u16
        } else {
            0
        }
    }
}

/// Which frames are a VLAN device's.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct VlanKey {
    /// Index of the interface that they come in by.
    pub interface: u32,
    /// Their tags without priorities, the outermost first and those of VLAN 0 left out; zeros where there is none.
    pub tags: [Tag; MOST_TAGS],
}

impl VlanKey {
    /// What is there where frames with tags that no device has are taken, too.
    pub const ANY: Self = Self {
        interface: 0,
        tags: [[0; size_of::<Tag>()]; MOST_TAGS],
    };
}

/// A device that stands over others, by which frames leave: a VLAN device, a bond, or one over the other.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Upper {
    /// Indices of the interfaces that they leave by. Of fewer, some stand here more than once; 0: none is there.
    pub lowers: [u32; LOWERS],
    /// Tags that they get, the outermost first.
    pub tags: [Tag; MOST_TAGS],
    /// How many of these there are.
    pub count: u16,
    /// The longest IP packet that can leave, in bytes.
    pub mtu: u16,
}

/// Places of [`Upper::lowers`].
pub const LOWERS: usize = 8;

const _: () = {
    assert!(size_of::<Tagged>() == 16);
    assert!(size_of::<VlanKey>() == 12);
    assert!(size_of::<Upper>() == 44);
};
