"""The main job: deepspeed launch/train.py --ds_config ds_configs/zero2.json [section.field=value ...]"""

from storyteller_ds.cli.start import run_train

if __name__ == "__main__":
    run_train()
