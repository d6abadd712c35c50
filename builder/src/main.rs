//! `kaai-builder`: the builder as a process of its own.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = builder::Args::parse();
    if args.common.is_ready {
        return Ok(runtime::admin::ask(args.common.admin_address).await?);
    }
    let rt = runtime::start("builder", &args.common, Some(&args.store)).await?;
    builder::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
