//! Stages with services of several addresses or ports. All concerns the last service added.

use std::{net::SocketAddr, ops::RangeInclusive};

use lb_common::tables::{Address, ClassKey, VipKey, WayBack, feature, owned};

use super::{Mode, Server, Stage, endpoint};

impl Stage {
    /// Adds a service of all addresses that begin with so many bits of the VIP's, and of ports of a range. Its class has
    /// these alone, so that what it leaves is for no service.
    pub fn serve_wide(
        mut self,
        mode: Mode,
        (vip, length): (&str, u32),
        ports: RangeInclusive<u16>,
        protocol: u8,
        servers: &[Server],
    ) -> Self {
        let before = self.tables.clone();
        let at: SocketAddr = vip.parse().expect("an address and port");
        assert_eq!(at.port(), 0, "ports are of the range");
        self = self.serve(mode, vip, protocol, servers).keeping_ports();
        let index = self.tables.service_entries.len() as u32 - 1;
        let address = Address::from(at.ip());
        let bits = length + if at.is_ipv4() { 96 } else { 0 };
        // As it was: neither its endpoint nor its way back is what it is found by.
        self.tables.lookup = before.lookup;
        self.tables.owned = before.owned;
        self.tables.control.features &= before.control.features | !feature::ALL_PORTS;
        self.tables.control.features |= feature::WIDE;
        let key = |protocol| VipKey::of(protocol, address).prefix(VipKey::PROTOCOL_BITS + bits);
        self.tables.classes.insert(key(protocol), [index + 1; 2]);
        self.tables.classes.insert(key(0), [owned::VIP; 2]);
        if mode == Mode::Nat {
            self.tables.ways_back = before.ways_back;
        }
        for port in ports {
            let block = ClassKey::of(index + 1, port.to_be());
            self.tables.class_ports.insert(block, index + 1);
            for server in servers.iter().filter(|_| mode == Mode::Nat) {
                let from = SocketAddr::new(server.address.ip(), port);
                let back = WayBack {
                    address,
                    port: port.to_be(),
                    ..WayBack::default()
                };
                let from = endpoint(from, protocol);
                self.tables.ways_back.insert(from, back);
            }
        }
        self
    }

    /// Others have ranges of its ports, and it the rest of that class.
    pub fn overlaid(mut self, class: u32, rest: RangeInclusive<u16>) -> Self {
        let index = self.tables.service_entries.len() as u32 - 1;
        for port in rest {
            let block = ClassKey::of(class, port.to_be());
            self.tables.class_ports.entry(block).or_insert(index + 1);
        }
        self.describe(|descriptor| descriptor.set_overlaid(true))
    }

    /// Its class is there in one half only: that of even or odd generations.
    pub fn class_only_in(mut self, half: usize) -> Self {
        let class = self.class();
        for halves in self.tables.classes.values_mut() {
            if halves[1 - half] == class {
                halves[1 - half] = 0;
            }
        }
        self
    }

    /// The number of its class.
    pub fn class(&self) -> u32 {
        self.tables.service_entries.len() as u32
    }
}
