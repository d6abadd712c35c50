//! The packager as a program of its own.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = packager::Args::parse();
    if args.common.is_ready {
        return Ok(runtime::admin::ask(args.common.admin_address).await?);
    }
    let rt = runtime::start("packager", &args.common, Some(&args.store)).await?;
    packager::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
