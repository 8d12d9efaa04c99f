//! Listening, and why it may not be possible.

use std::{io, net::IpAddr};

use tokio::net::TcpListener;

use crate::{
    datadir::DataDir,
    exit::{Exit, Kind},
};

/// Listens on `port` of each address. Port 0 is the one that the data directory remembers, or else any, which it then
/// remembers.
pub(crate) async fn bind(dir: &DataDir, addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, Exit> {
    let wanted = if port == 0 { dir.remembered_port().unwrap_or(0) } else { port };
    let listeners = bind_all(addresses, wanted).await.map_err(|e| bind_exit(wanted, port == 0, &e))?;
    if port == 0
        && let Some(chosen) = listeners.first().and_then(|l| l.local_addr().ok())
    {
        dir.remember_port(chosen.port())?;
    }
    Ok(listeners)
}

/// Listens on the port of health and metrics.
pub(crate) async fn bind_debug(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, Exit> {
    bind_all(addresses, port).await.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => Exit::new(
            Kind::PortInUse,
            format!(
                "port {port}, for health and metrics, is in use by another program; stop that one, or choose a port with \
                 --debug-port"
            ),
        ),
        _ => Exit::other(format!("cannot listen on port {port} for health and metrics: {e}; choose another with --debug-port")),
    })
}

/// The port of the first address is the port of all.
async fn bind_all(addresses: &[IpAddr], mut port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(addresses.len());
    for address in addresses {
        match TcpListener::bind((*address, port)).await {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            // A machine without IPv6, or an address that an earlier one covers: clients fall back to the others.
            Err(error) if !listeners.is_empty() && may_miss(address, &error) => {
                tracing::debug!(%error, "not listening on {address}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

/// Whether an address may be missing when there are others: the loopback of IPv6, which many machines do not have.
fn may_miss(address: &IpAddr, error: &io::Error) -> bool {
    let absent = matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT);
    address.is_ipv6() && (absent || address.is_loopback())
}

fn bind_exit(port: u16, remembered: bool, error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::AddrInUse if remembered => Exit::new(
            Kind::PortInUse,
            format!(
                "port {port}, which this data directory remembers, is in use by another program; stop that one, or choose \
                 a port with --port (tasks that still run only find Aloft on the old one)"
            ),
        ),
        io::ErrorKind::AddrInUse => Exit::new(
            Kind::PortInUse,
            format!("port {port} is in use by another program; stop that one, or choose a port with --port"),
        ),
        io::ErrorKind::PermissionDenied => {
            Exit::new(Kind::PortInUse, format!("port {port} may not be used without privileges; choose one above 1023"))
        }
        io::ErrorKind::AddrNotAvailable => {
            Exit::other(format!("an address of listen.addresses is none of this machine: {error}; name one that is"))
        }
        _ => Exit::other(format!("cannot listen on port {port}: {error}")),
    }
}
