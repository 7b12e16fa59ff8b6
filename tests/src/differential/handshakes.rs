//! Handshakes that are answered by SYN cookies, which no other host can make: the kernel's are given to the host's side. Frames alone;
//! their checksums are nobody's to verify.

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Where the TCP header of a frame is that has neither IP options nor extension headers, and the length of addresses before it.
fn transport(frame: &[u8]) -> Option<(usize, usize)> {
    let mut network = 14;
    let ether_type = loop {
        match frame.get(network - 2..network)? {
            // Behind VLAN tags.
            [0x81, 0] | [0x88, 0xa8] => network += 4,
            ether_type => break ether_type,
        }
    };
    let (at, protocol, length) = match (ether_type, frame.get(network)?) {
        ([8, 0], 0x45) => (network + 20, network + 9, 4),
        ([0x86, 0xdd], _) => (network + 40, network + 6, 16),
        _ => return None,
    };
    (*frame.get(protocol)? == 6 && frame.len() >= at + 20).then_some((at, length))
}

fn word(frame: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?))
}

/// The cookie that a frame brings, and the MSS that it tells.
pub fn cookie(frame: &[u8]) -> Option<(u32, u16)> {
    let (at, _) = transport(frame)?;
    // SYN and ACK, a closed window, and the option alone.
    let header = frame.get(at + 12..at + 24)?;
    let is_ours =
        header[..2] == [0x60, SYN | ACK] && header[2..4] == [0; 2] && header[8..10] == [2, 4];
    let mss = u16::from_be_bytes([header[10], header[11]]);
    is_ours.then_some((word(frame, at + 4)?, mss))
}

/// What acknowledges a cookie that has answered this SYN.
pub fn acknowledgement(syn: &[u8], cookie: u32) -> Option<Vec<u8>> {
    let (at, _) = transport(syn)?;
    let mut frame = syn.to_vec();
    let next = word(syn, at + 4)?.wrapping_add(1);
    frame[at + 4..at + 8].copy_from_slice(&next.to_be_bytes());
    frame[at + 8..at + 12].copy_from_slice(&cookie.wrapping_add(1).to_be_bytes());
    frame[at + 13] = ACK;
    Some(frame)
}

/// What a backend sends that has got this SYN: its own, or a segment that acknowledges it.
pub fn answer(syn: &[u8], first: u32, opens: bool) -> Option<Vec<u8>> {
    let (at, length) = transport(syn)?;
    let mut frame = syn.to_vec();
    let (from, to) = (at - 2 * length, at - length);
    frame[from..to].copy_from_slice(&syn[to..at]);
    frame[to..at].copy_from_slice(&syn[from..to]);
    frame[at..at + 2].copy_from_slice(&syn[at + 2..at + 4]);
    frame[at + 2..at + 4].copy_from_slice(&syn[at..at + 2]);
    let next = word(syn, at + 4)?.wrapping_add(1);
    frame[at + 4..at + 8].copy_from_slice(&first.to_be_bytes());
    frame[at + 8..at + 12].copy_from_slice(&next.to_be_bytes());
    frame[at + 13] = if opens { SYN | ACK } else { ACK };
    Some(frame)
}
