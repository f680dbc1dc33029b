// SPDX-License-Identifier: GPL-2.0

//! Frames of the benchmarks: UDP packets of many flows, as a device hands them over.

/// A UDP packet over IPv4 of flow number `flow`, from the IP header on, with 36 bytes of payload: 64 bytes.
#[must_use]
pub fn ipv4(flow: u32) -> [u8; 64] {
    let mut packet = [0; 64];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 64, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet[12..16].copy_from_slice(&host(flow));
    packet[16..20].copy_from_slice(&[198, 51, 100, 10]);
    let sum = packet[..20]
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet[20..28].copy_from_slice(&udp(flow, 44));
    packet
}

/// The same over IPv6: 84 bytes.
#[must_use]
pub fn ipv6(flow: u32) -> [u8; 84] {
    let mut packet = [0; 84];
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 44, 17, 64]);
    packet[8..12].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    packet[20..24].copy_from_slice(&host(flow));
    packet[24..28].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    packet[39] = 10;
    packet[40..48].copy_from_slice(&udp(flow, 44));
    packet
}

fn host(flow: u32) -> [u8; 4] {
    (0x0a00_0000 + (flow >> 12)).to_be_bytes()
}

fn udp(flow: u32, len: u16) -> [u8; 8] {
    let [s, t] = (10_000 + (flow & 0xfff) as u16).to_be_bytes();
    let [l, m] = len.to_be_bytes();
    [s, t, 0, 53, l, m, 0x12, 0x34]
}
