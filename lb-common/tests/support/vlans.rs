//! Devices that stand over others on a [`Stage`].

use lb_common::{
    tables::{Interface, LOWERS, Tag, UPPER, Upper, VlanKey, feature},
    vlan,
};

use super::{INGRESS, Mac, Stage};

impl Stage {
    /// Frames may have tags.
    pub fn vlans(mut self) -> Self {
        self.tables.control.features |= feature::VLAN;
        self.tables.vlans.insert(VlanKey::ANY, 0);
        self
    }

    /// But for those of VLANs that there is no device for.
    pub fn known_vlans(mut self) -> Self {
        self.tables.vlans.remove(&VlanKey::ANY);
        self
    }

    /// A device over others, by its index: frames leave by those, with these tags, and are it by them on [`INGRESS`].
    pub fn device(mut self, index: u32, lowers: &[u32], tags: &[Tag], mtu: u16) -> Self {
        let mut both = [[0; 4]; 2];
        both[..tags.len()].copy_from_slice(tags);
        let upper = Upper {
            lowers: std::array::from_fn(|place| {
                lowers
                    .get(place % lowers.len().max(1))
                    .copied()
                    .unwrap_or(0)
            }),
            tags: both,
            count: tags.len() as u16,
            mtu,
        };
        assert!(lowers.len() <= LOWERS);
        self.tables.uppers.insert(index, upper);
        if !tags.is_empty() {
            self.tables
                .vlans
                .insert(vlan::key(INGRESS, both), index | UPPER);
        }
        self.vlans()
    }

    /// VIPs are announced by a device with this hardware address.
    pub fn announcing_by(self, device: u32, mac: Mac) -> Self {
        let mut stage = self.announcing();
        let zeros = [0; 2];
        stage
            .tables
            .interfaces
            .insert(device, Interface { mac, zeros });
        stage
    }
}
