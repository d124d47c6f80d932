//! `tproxy attach` and `tproxy detach`.

use clap::Args;

use super::{begin_there, block_on, interface_name, refuse_repeated};
use crate::{delivery::Netlink, instance::Instance, requirements};

#[derive(Args)]
pub(super) struct Arguments {
    /// Interfaces
    #[arg(required = true, value_name = "IF,...", value_delimiter = ',', value_parser = interface_name)]
    interfaces: Vec<String>,
}

pub(super) fn attach(instance: &Instance, arguments: &Arguments) -> anyhow::Result<()> {
    refuse_repeated("attach", &arguments.interfaces)?;
    requirements::check()?;
    let change = begin_there(instance)?;
    block_on(async {
        change
            .attach(&Netlink::open()?, &arguments.interfaces)
            .await?;
        Ok(())
    })
}

pub(super) fn detach(instance: &Instance, arguments: &Arguments) -> anyhow::Result<()> {
    refuse_repeated("detach", &arguments.interfaces)?;
    requirements::check()?;
    let change = begin_there(instance)?;
    block_on(async {
        change
            .detach(&Netlink::open()?, &arguments.interfaces)
            .await?;
        Ok(())
    })
}
