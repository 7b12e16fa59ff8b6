//! ARP packets and neighbour discovery about VIPs and other addresses, whole and not. Makes frames alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Icmpv6Header, Icmpv6Type};

use super::frames::{Generator, ethernet};

impl Generator {
    /// Who has `target`, or says so.
    pub(super) fn who_has(&mut self, target: IpAddr) -> Vec<u8> {
        match target {
            IpAddr::V4(target) => self.arp(target),
            IpAddr::V6(target) => self.discovery(target),
        }
    }

    fn mac(&mut self) -> [u8; 6] {
        let last = self.random.below(4) as u8;
        self.random.pick(&[
            [2, 0, 0, 0, 0, last],
            [2, 0, 0, 0, 0, last],
            [2, 0, 0, 0, 0, last],
            [0xff; 6],
            [0; 6],
        ])
    }

    fn arp(&mut self, target: Ipv4Addr) -> Vec<u8> {
        let stranger = [192, 0, 2, self.random.below(256) as u8];
        let (own, other) = (target.octets(), self.random.pick(&[stranger, [0; 4]]));
        let (sender, target) = self.random.pick(&[
            (other, own),
            (other, own),
            (other, own),
            (own, own),
            (own, other),
        ]);
        let mut frame = ethernet(0x0806);
        frame.extend([0, 1, 8, 0, 6, 4, 0, self.random.pick(&[1, 1, 1, 2, 9])]);
        frame.extend(self.mac());
        frame.extend(sender);
        frame.extend(self.mac());
        frame.extend(target);
        frame
    }

    fn discovery(&mut self, target: Ipv6Addr) -> Vec<u8> {
        let kind = self.random.pick(&[135, 135, 135, 135, 136]);
        let code = self.random.pick(&[0, 0, 0, 0, 0, 0, 0, 1]);
        let mut body = target.octets().to_vec();
        for _ in 0..self.random.below(4) {
            let kind = self.random.pick(&[1, 1, 1, 2, 14]);
            let units = self.random.pick(&[1, 1, 1, 1, 1, 2, 9, 0]);
            body.extend([kind, units]);
            body.extend(self.mac());
            body.resize(body.len() + 8 * usize::from(units).saturating_sub(1), 7);
        }
        if self.random.once_in(16) {
            body.resize(body.len() + self.random.below(600), 0);
        }
        let [.., a, b, c] = target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let to = self
            .random
            .pick(&[group, group, group, target, Ipv6Addr::LOCALHOST]);
        let neighbour = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, self.random.below(9) as u16 + 1);
        let from = self.random.pick(&[
            neighbour,
            neighbour,
            neighbour,
            Ipv6Addr::UNSPECIFIED,
            group,
        ]);
        let message = Icmpv6Type::Unknown {
            type_u8: kind,
            code_u8: code,
            bytes5to8: [0; 4],
        };
        let mut content =
            match Icmpv6Header::with_checksum(message, from.octets(), to.octets(), &body) {
                Ok(header) => header.to_bytes().to_vec(),
                Err(_) => Vec::new(),
            };
        content.extend(body);
        let mut frame = ethernet(0x86dd);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((content.len() as u16).to_be_bytes());
        frame.extend([58, self.random.pick(&[255, 255, 255, 255, 255, 255, 64])]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(content);
        frame
    }
}
