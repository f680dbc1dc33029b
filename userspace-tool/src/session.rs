// SPDX-License-Identifier: GPL-2.0-only

//! The tool's connections to the kernel, opened when first needed.

use std::io;

use crate::client;
use crate::client::Client;
use crate::client::Events;
use crate::device::Devices;
use crate::netns;
use crate::nft::Nft;
use crate::nl;
use crate::nl::Bus;
use crate::nl::Connection;
use crate::nl::Socket;
use crate::nl::Transport;

/// The kernel that the tool talks to: the running one, or a simulated one in tests.
pub trait System {
    /// Opens a socket.
    fn open(&self, bus: Bus) -> io::Result<Box<dyn Transport>>;

    /// Moves into a network namespace; what is opened later belongs to it.
    fn enter_netns(&self, name: &str) -> io::Result<()>;
}

/// The running kernel.
#[derive(Debug, Clone, Copy)]
pub struct Host;

impl System for Host {
    fn open(&self, bus: Bus) -> io::Result<Box<dyn Transport>> {
        Ok(Box::new(Socket::open(bus)?))
    }

    fn enter_netns(&self, name: &str) -> io::Result<()> {
        netns::enter(name)
    }
}

/// Connections to both parts of the kernel.
pub struct Session<'a> {
    system: &'a dyn System,
    client: Option<Client>,
}

impl<'a> Session<'a> {
    /// A session without connections.
    pub fn new(system: &'a dyn System) -> Self {
        Self { system, client: None }
    }

    fn open(&self, bus: Bus) -> Result<Box<dyn Transport>, nl::Error> {
        self.system.open(bus).map_err(nl::Error::Open)
    }

    /// The module.
    pub fn client(&mut self) -> Result<&mut Client, client::Error> {
        if self.client.is_none() {
            self.client = Some(Client::new(self.open(Bus::Generic)?)?);
        }
        Ok(self.client.as_mut().expect("it was just put there"))
    }

    /// The module, or none if it is not loaded.
    pub fn loaded_client(&mut self) -> Result<Option<&mut Client>, client::Error> {
        match self.client() {
            Ok(client) => Ok(Some(client)),
            Err(client::Error::NotLoaded) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Events of the module, over a socket of their own.
    pub fn events(&mut self) -> Result<Events, client::Error> {
        let transport = self.open(Bus::Generic)?;
        self.client()?.events(transport)
    }

    /// nf_tables.
    pub fn nft(&self) -> Result<Nft, nl::Error> {
        Ok(Nft::new(Connection::new(self.open(Bus::Netfilter)?)))
    }

    /// Names of devices. Without the socket that they come from there are numbers.
    pub fn devices(&self, numeric: bool) -> Devices {
        match self.open(Bus::Route) {
            Ok(transport) if !numeric => Devices::new(Connection::new(transport)),
            _ => Devices::unnamed(),
        }
    }
}
