"""What a network looks at, as arrays: class activation maps, Grad-CAM, saliency, occlusion, and what is dead."""
